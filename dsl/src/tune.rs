//! Config structs: fields by name, search space, constraints. `#[derive(Tune)]` implements [`Tune`].

use std::fmt;

/// A value of a config field.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TuneValue {
    Int(i64),
    Bool(bool),
}

impl fmt::Display for TuneValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TuneValue::Int(v) => write!(f, "{v}"),
            TuneValue::Bool(v) => write!(f, "{v}"),
        }
    }
}

impl std::str::FromStr for TuneValue {
    type Err = TuneError;

    fn from_str(text: &str) -> Result<TuneValue, TuneError> {
        match text {
            "true" => Ok(TuneValue::Bool(true)),
            "false" => Ok(TuneValue::Bool(false)),
            _ => text.parse().map(TuneValue::Int).map_err(|_| TuneError::NotAValue(text.to_owned())),
        }
    }
}

impl From<bool> for TuneValue {
    fn from(v: bool) -> TuneValue {
        TuneValue::Bool(v)
    }
}

impl TryFrom<TuneValue> for bool {
    type Error = TuneValue;
    fn try_from(v: TuneValue) -> Result<bool, TuneValue> {
        match v {
            TuneValue::Bool(b) => Ok(b),
            TuneValue::Int(_) => Err(v),
        }
    }
}

macro_rules! int { ($($t:ty),*) => { $(
    impl From<$t> for TuneValue {
        fn from(v: $t) -> TuneValue {
            TuneValue::Int(v as i64)
        }
    }
    impl TryFrom<TuneValue> for $t {
        type Error = TuneValue;
        fn try_from(v: TuneValue) -> Result<$t, TuneValue> {
            match v {
                TuneValue::Int(i) => <$t>::try_from(i).map_err(|_| v),
                TuneValue::Bool(_) => Err(v),
            }
        }
    }
)* } }
int!(usize, u32, i32, i64);

/// A field of a config struct.
#[derive(Clone, PartialEq, Debug)]
pub struct TuneField {
    pub name: &'static str,
    /// Values to search, in order of preference; empty if the field is not searched.
    pub values: Vec<TuneValue>,
}

/// Why a config field could not be set.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TuneError {
    #[error("no config field `{name}`; the fields are: {}", known.join(", "))]
    Unknown { name: String, known: Vec<&'static str> },
    #[error("config field `{name}` cannot be {value}: {}", expected(*current, *value))]
    WrongValue { name: String, value: TuneValue, current: TuneValue },
    #[error("`{0}` is neither an integer nor true or false")]
    NotAValue(String),
}

/// What a field takes, as far as its value before tells.
fn expected(current: TuneValue, value: TuneValue) -> String {
    match (current, value) {
        (TuneValue::Bool(_), _) => "it is true or false".to_owned(),
        (TuneValue::Int(_), TuneValue::Bool(_)) => format!("it is a number, without this {current}"),
        (TuneValue::Int(_), TuneValue::Int(_)) => format!("that is outside of its range; without this it is {current}"),
    }
}

impl TuneError {
    #[doc(hidden)]
    pub fn unknown(name: &str, known: &[&'static str]) -> TuneError {
        TuneError::Unknown { name: name.to_owned(), known: known.to_vec() }
    }

    #[doc(hidden)]
    pub fn wrong_value(name: &str, value: TuneValue, current: TuneValue) -> TuneError {
        TuneError::WrongValue { name: name.to_owned(), value, current }
    }
}

/// A config struct that an autotuner and a command line can read and change by field name.
pub trait Tune: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The fields in declaration order.
    fn fields() -> Vec<TuneField>
    where
        Self: Sized;

    /// The value of a field.
    fn get(&self, name: &str) -> Option<TuneValue>;

    /// Changes a field.
    ///
    /// # Errors
    /// If there is no such field, or it cannot hold the value.
    fn set(&mut self, name: &str, value: TuneValue) -> Result<(), TuneError>;

    /// Checks the constraints.
    ///
    /// # Errors
    /// The text of the first one that does not hold.
    fn legal(&self) -> Result<(), &'static str>;

    /// Every legal point of the space around this one: searched fields take all their values, the others stay.
    fn space(&self) -> Vec<Self>
    where
        Self: Sized,
    {
        let mut points = vec![self.clone()];
        for field in Self::fields().iter().filter(|f| !f.values.is_empty()) {
            points = points
                .iter()
                .flat_map(|p| {
                    field.values.iter().filter_map(|v| {
                        let mut p = p.clone();
                        p.set(field.name, *v).ok().map(|()| p)
                    })
                })
                .collect();
        }
        points.retain(|p| p.legal().is_ok());
        points
    }
}
