//! `#[derive(Tune)]`: a config struct's fields by name, its search space, and its constraints.

use proc_macro2::TokenStream;
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Expr, ExprLit, Fields, Ident, Lit, Token, Type};

/// A struct-level `#[tune(constraint = expr)]`.
struct Constraint(Expr);

impl Parse for Constraint {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let key: Ident = input.parse()?;
        if key != "constraint" {
            return Err(syn::Error::new(key.span(), "expected `constraint = <condition on the fields>`"));
        }
        let _: Token![=] = input.parse()?;
        Ok(Constraint(input.parse()?))
    }
}

pub fn expand(input: TokenStream) -> TokenStream {
    syn::parse2(input).and_then(build).unwrap_or_else(|e| e.to_compile_error())
}

fn build(input: DeriveInput) -> syn::Result<TokenStream> {
    let name = &input.ident;
    let Data::Struct(data) = &input.data else {
        return Err(syn::Error::new(name.span(), "`Tune` is for structs with named fields"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(syn::Error::new(name.span(), "`Tune` is for structs with named fields"));
    };
    let mut constraints = Vec::new();
    for a in input.attrs.iter().filter(|a| a.path().is_ident("tune")) {
        constraints.push(a.parse_args::<Constraint>()?.0);
    }
    let mut idents = Vec::new();
    let mut rows = Vec::new();
    let mut sizes = Vec::new();
    for f in &fields.named {
        let id = f.ident.clone().ok_or_else(|| syn::Error::new(f.span(), "fields of a config have names"))?;
        let ty = &f.ty;
        let text = id.to_string();
        let mut values = quote!(::std::vec::Vec::new());
        for a in f.attrs.iter().filter(|a| a.path().is_ident("tune")) {
            let list = a.parse_args_with(Punctuated::<Expr, Token![,]>::parse_terminated)?;
            if is_integer(ty) && list.iter().all(is_positive) {
                sizes.push(syn::parse_quote!(#id > 0));
            }
            let pushes = list.iter().map(|e| match e {
                Expr::Range(_) => quote!(__values.extend((#e).map(|v: #ty| ::zellige::TuneValue::from(v)));),
                _ => quote!(__values.push(::zellige::TuneValue::from({ let v: #ty = #e; v }));),
            });
            values = quote!({ let mut __values = ::std::vec::Vec::new(); #(#pushes)* __values });
        }
        rows.push(quote!(::zellige::TuneField { name: #text, values: #values }));
        idents.push((id, text));
    }
    let (ids, texts): (Vec<_>, Vec<_>) = idents.into_iter().unzip();
    // First those that the others may rely on.
    let conditions = sizes.iter().chain(&constraints).map(|c: &Expr| {
        // Long ones come in several lines.
        let text = quote!(#c).to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        quote!(if !(#c) { return ::core::result::Result::Err(#text); })
    });
    let (ig, tg, wc) = input.generics.split_for_impl();
    Ok(quote! {
        impl #ig ::zellige::Tune for #name #tg #wc {
            fn fields() -> ::std::vec::Vec<::zellige::TuneField> {
                ::std::vec![#(#rows),*]
            }

            fn get(&self, name: &str) -> ::core::option::Option<::zellige::TuneValue> {
                match name {
                    #(#texts => ::core::option::Option::Some(::zellige::TuneValue::from(self.#ids)),)*
                    _ => ::core::option::Option::None,
                }
            }

            fn set(&mut self, name: &str, value: ::zellige::TuneValue) -> ::core::result::Result<(), ::zellige::TuneError> {
                match name {
                    #(#texts => {
                        let current = ::zellige::TuneValue::from(self.#ids);
                        self.#ids = ::core::convert::TryFrom::try_from(value)
                            .map_err(|_| ::zellige::TuneError::wrong_value(name, value, current))?;
                        ::core::result::Result::Ok(())
                    })*
                    _ => ::core::result::Result::Err(::zellige::TuneError::unknown(name, &[#(#texts),*])),
                }
            }

            #[allow(unused_variables)]
            fn legal(&self) -> ::core::result::Result<(), &'static str> {
                let Self { #(#ids),* } = ::core::clone::Clone::clone(self);
                #(#conditions)*
                ::core::result::Result::Ok(())
            }
        }
    })
}

fn is_integer(ty: &Type) -> bool {
    let names = ["usize", "u8", "u16", "u32", "u64", "isize", "i8", "i16", "i32", "i64"];
    matches!(ty, Type::Path(path) if names.iter().any(|name| path.path.is_ident(name)))
}

/// True for a number above zero, and for a range that starts at one.
fn is_positive(value: &Expr) -> bool {
    match value {
        Expr::Lit(ExprLit { lit: Lit::Int(n), .. }) => n.base10_parse::<u64>().is_ok_and(|n| n > 0),
        Expr::Range(range) => range.start.as_deref().is_some_and(is_positive),
        _ => false,
    }
}
