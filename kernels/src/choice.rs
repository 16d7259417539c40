//! Small helpers of kernel entries: enums as config fields, and dispatch on element types known at run time.

/// Declares an enum that can be a field of a config struct; on the command line it is the variant's position.
macro_rules! choices {
    ($($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),* $(,)? })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// All of them, in declaration order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
        }

        impl From<$name> for zellige::TuneValue {
            fn from(v: $name) -> zellige::TuneValue {
                zellige::TuneValue::Int(v as i64)
            }
        }

        impl TryFrom<zellige::TuneValue> for $name {
            type Error = zellige::TuneValue;
            fn try_from(v: zellige::TuneValue) -> Result<$name, zellige::TuneValue> {
                usize::try_from(v).ok().and_then(|i| $name::ALL.get(i).copied()).ok_or(v)
            }
        }
    )* };
}

/// Evaluates `body` with `$T` standing for the element type that `dtype` names; any other type is an error.
macro_rules! with_type {
    ($dtype:expr, $T:ident in [$($variant:ident = $t:ty),* $(,)?], $body:expr) => {
        match $dtype {
            $(zellige_ir::DType::$variant => {
                type $T = $t;
                $body
            })*
            other => Err($crate::library::ProblemError::Unsupported(format!(
                "no kernel for elements of type {other}; there is: {}",
                [$(zellige_ir::DType::$variant.name()),*].join(", ")
            ))),
        }
    };
}

pub(crate) use {choices, with_type};
