//! `#[kernel]`: the function as it is, and a typed launcher beside it.

use crate::{lint, rewrite};
use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Expr, ExprLit, FnArg, Ident, ItemFn, Lit, LitInt, Meta, Pat, ReturnType, Token, Type};

/// Arguments of the attribute.
struct KernelArgs {
    static_dims: Vec<Ident>,
}

impl Parse for KernelArgs {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut static_dims = Vec::new();
        while !input.is_empty() {
            let key: Ident = input.parse()?;
            if key != "static_dims" {
                return Err(syn::Error::new(key.span(), "expected `static_dims(..)`"));
            }
            let content;
            syn::parenthesized!(content in input);
            static_dims.extend(Punctuated::<Ident, Token![,]>::parse_terminated(&content)?);
            let _: Option<Token![,]> = input.parse()?;
        }
        Ok(KernelArgs { static_dims })
    }
}

/// One entry of `#[dims(..)]`.
enum DimArg {
    Name(Ident),
    Fixed(LitInt),
}

impl Parse for DimArg {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        if input.peek(Ident) { Ok(DimArg::Name(input.parse()?)) } else { Ok(DimArg::Fixed(input.parse()?)) }
    }
}

enum Kind {
    Comptime,
    Tensor { inner: Box<Type>, mutable: bool, dims: Option<Vec<DimArg>>, strided: bool },
    Scalar,
}

struct Param {
    name: Ident,
    ty: Type,
    kind: Kind,
}

const HELPERS: [&str; 3] = ["comptime", "dims", "strided"];

/// Expands `#[tile]`.
pub fn expand_helper(args: TokenStream, input: TokenStream) -> TokenStream {
    let mut f: ItemFn = match syn::parse2(input.clone()) {
        Ok(f) => f,
        Err(e) => return join(e.to_compile_error(), input),
    };
    let mut errors = Vec::new();
    if !args.is_empty() {
        errors.push(syn::Error::new(args.span(), "`#[tile]` takes no arguments"));
    }
    if let Some(t) = recorder_name(&f) {
        errors.extend(lint::check(&f.block, &t));
    }
    rewrite::body(&mut f.block);
    let errors = errors.iter().map(syn::Error::to_compile_error);
    quote!(#(#errors)* #f)
}

/// Expands `#[kernel]`.
pub fn expand(args: TokenStream, input: TokenStream) -> TokenStream {
    let f: ItemFn = match syn::parse2(input.clone()) {
        Ok(f) => f,
        Err(e) => return join(e.to_compile_error(), input),
    };
    let args: KernelArgs = match syn::parse2(args) {
        Ok(args) => args,
        Err(e) => return join(e.to_compile_error(), stripped(f)),
    };
    match build(args, f.clone()) {
        Ok(out) => out,
        Err(e) => join(e.to_compile_error(), stripped(f)),
    }
}

fn join(error: TokenStream, item: impl quote::ToTokens) -> TokenStream {
    quote!(#error #item)
}

/// The function without our helper attributes, for output beside an error: rewritten, so that rustc does not
/// complain about what a kernel may write.
fn stripped(mut f: ItemFn) -> ItemFn {
    rewrite::body(&mut f.block);
    for a in &mut f.sig.inputs {
        if let FnArg::Typed(p) = a {
            p.attrs.retain(|a| !HELPERS.iter().any(|h| a.path().is_ident(h)));
        }
    }
    f
}

/// The name of the first parameter, through which tile ops are recorded.
fn recorder_name(f: &ItemFn) -> Option<Ident> {
    match f.sig.inputs.first() {
        Some(FnArg::Typed(p)) => match &*p.pat {
            Pat::Ident(id) => Some(id.ident.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn build(args: KernelArgs, mut f: ItemFn) -> syn::Result<TokenStream> {
    let Some(t) = recorder_name(&f) else {
        return Err(syn::Error::new(f.sig.span(), "the first parameter of a kernel is `t: T`"));
    };
    if let ReturnType::Type(_, ty) = &f.sig.output {
        return Err(syn::Error::new(
            ty.span(),
            "a kernel returns nothing: write its results to `&mut Tensor` parameters",
        ));
    }
    if let Some(a) = &f.sig.asyncness {
        return Err(syn::Error::new(a.span(), "a kernel cannot be async"));
    }
    let params = params(&mut f)?;
    let named: Vec<String> = params
        .iter()
        .filter_map(|p| match &p.kind {
            Kind::Tensor { dims: Some(dims), .. } => Some(dims),
            _ => None,
        })
        .flatten()
        .filter_map(|d| match d {
            DimArg::Name(n) => Some(n.to_string()),
            DimArg::Fixed(_) => None,
        })
        .collect();
    for d in &args.static_dims {
        if !named.contains(&d.to_string()) {
            return Err(syn::Error::new(
                d.span(),
                format!("no tensor has a dim `{d}`; the named dims are: {}", dedup(&named).join(", ")),
            ));
        }
    }
    let errors: Vec<_> = lint::check(&f.block, &t).iter().map(syn::Error::to_compile_error).collect();
    rewrite::body(&mut f.block);
    let launcher = launcher(&args, &f, &params);
    // A kernel has as many parameters as its tensors ask for.
    Ok(quote!(#(#errors)* #[allow(clippy::too_many_arguments)] #f #launcher))
}

fn dedup(names: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for n in names {
        if !out.contains(n) {
            out.push(n.clone());
        }
    }
    out
}

/// Reads the parameters after the first and strips the helper attributes.
fn params(f: &mut ItemFn) -> syn::Result<Vec<Param>> {
    let mut out = Vec::new();
    for a in f.sig.inputs.iter_mut().skip(1) {
        let FnArg::Typed(p) = a else {
            return Err(syn::Error::new(a.span(), "a kernel is a free function"));
        };
        let Pat::Ident(id) = &*p.pat else {
            return Err(syn::Error::new(
                p.pat.span(),
                "a kernel parameter is a plain name: destructure it in the body",
            ));
        };
        let name = id.ident.clone();
        let take = |attrs: &mut Vec<Attribute>, name: &str| {
            attrs.iter().position(|a| a.path().is_ident(name)).map(|i| attrs.remove(i))
        };
        let comptime = take(&mut p.attrs, "comptime");
        let dims = take(&mut p.attrs, "dims");
        let strided = take(&mut p.attrs, "strided");
        let misplaced =
            |what: &str, a: &Attribute| syn::Error::new(a.span(), format!("`#[{what}]` belongs on a tensor parameter"));
        let kind = match (&*p.ty, comptime) {
            (_, Some(_)) => Kind::Comptime,
            (Type::Reference(r), None) => {
                let dims = match &dims {
                    Some(a) => Some(
                        a.parse_args_with(Punctuated::<DimArg, Token![,]>::parse_terminated)?.into_iter().collect(),
                    ),
                    None => None,
                };
                Kind::Tensor {
                    inner: r.elem.clone(),
                    mutable: r.mutability.is_some(),
                    dims,
                    strided: strided.is_some(),
                }
            }
            (_, None) => Kind::Scalar,
        };
        if !matches!(kind, Kind::Tensor { .. }) {
            if let Some(a) = &dims {
                return Err(misplaced("dims", a));
            }
            if let Some(a) = &strided {
                return Err(misplaced("strided", a));
            }
        }
        out.push(Param { name, ty: (*p.ty).clone(), kind });
    }
    Ok(out)
}

fn launcher(args: &KernelArgs, f: &ItemFn, params: &[Param]) -> TokenStream {
    let name = &f.sig.ident;
    let vis = &f.vis;
    let launcher = format_ident!("{}", camel(&name.to_string()), span = name.span());
    let (impl_generics, ty_generics, where_clause) = f.sig.generics.split_for_impl();
    let generics = &f.sig.generics;
    let type_params: Vec<_> = f.sig.generics.type_params().map(|p| p.ident.clone()).collect();
    let const_params: Vec<_> = f.sig.generics.const_params().map(|p| p.ident.clone()).collect();
    let turbofish = if type_params.is_empty() && const_params.is_empty() {
        quote!()
    } else {
        quote!(::<#(#type_params,)* #(#const_params),*>)
    };

    let comptime: Vec<_> = params.iter().filter(|p| matches!(p.kind, Kind::Comptime)).collect();
    let (fields, field_types): (Vec<_>, Vec<_>) = comptime.iter().map(|p| (&p.name, &p.ty)).unzip();
    let new_doc = format!("A launcher of `{name}` for these compile-time parameters.");

    let mut specs = Vec::new();
    let mut binds = Vec::new();
    let mut call = Vec::new();
    let mut host_params = Vec::new();
    let mut host_args = Vec::new();
    let mut position = 0usize;
    for p in params {
        let (id, ty) = (&p.name, &p.ty);
        let text = id.to_string();
        let span = ty.span();
        match &p.kind {
            Kind::Comptime => call.push(quote!(::core::clone::Clone::clone(&self.#id))),
            Kind::Tensor { inner, mutable, dims, strided } => {
                let access = if *mutable { quote!(Write) } else { quote!(Read) };
                let spec = match dims {
                    Some(dims) => {
                        let dims = dims.iter().map(|d| match d {
                            DimArg::Name(n) => {
                                let n_text = n.to_string();
                                quote_spanned!(n.span()=> ::zellige::__rt::DimSpec::named(#n_text))
                            }
                            DimArg::Fixed(n) => quote_spanned!(n.span()=> ::zellige::__rt::DimSpec::Fixed(#n)),
                        });
                        quote_spanned!(span=> <#inner as ::zellige::__rt::TensorParam>::spec(#text, [#(#dims),*], ::zellige::__rt::Access::#access, #strided))
                    }
                    None => {
                        quote_spanned!(span=> <#inner as ::zellige::__rt::TensorParam>::anonymous(#text, ::zellige::__rt::Access::#access, #strided))
                    }
                };
                specs.push(spec);
                if *mutable {
                    binds.push(quote_spanned!(id.span()=> let mut #id: #inner = __binder.tensor(#position);));
                    call.push(quote!(&mut #id));
                    host_params.push(quote_spanned!(span=> #id: &mut <#inner as ::zellige::__rt::TensorParam>::Host));
                    host_args.push(quote!(::zellige::__rt::Arg::from(#id)));
                } else {
                    binds.push(quote_spanned!(id.span()=> let #id: #inner = __binder.tensor(#position);));
                    call.push(quote!(&#id));
                    host_params.push(quote_spanned!(span=> #id: &<#inner as ::zellige::__rt::TensorParam>::Host));
                    host_args.push(quote!(::zellige::__rt::Arg::from(#id)));
                }
                position += 1;
            }
            Kind::Scalar => {
                specs.push(quote_spanned!(span=> <#ty as ::zellige::__rt::ScalarParam>::spec(#text)));
                binds.push(quote_spanned!(span=> let #id: #ty = __binder.scalar(#position);));
                call.push(quote!(#id));
                host_params.push(quote_spanned!(span=> #id: <#ty as ::zellige::__rt::ScalarParam>::Host));
                host_args.push(quote_spanned!(span=> <#ty as ::zellige::__rt::ScalarParam>::arg(#id)));
                position += 1;
            }
        }
    }
    let static_dims = args.static_dims.iter().map(ToString::to_string);
    let name_text = name.to_string();
    let doc = doc_text(&f.attrs);
    let place = quote_spanned!(name.span()=> ::zellige::__rt::here());
    let launcher_doc = format!("Launcher of the kernel [`{name}`].");
    let launch_doc = format!(
        "Runs [`{name}`] on the stream's device.\n\n# Errors\nIf an argument does not fit the kernel's signature, the kernel has \
         mistakes in it, or the device fails."
    );

    quote! {
        #[doc = #launcher_doc]
        #[derive(Clone, Debug)]
        #vis struct #launcher #generics #where_clause {
            #(#fields: #field_types,)*
            __key: ::zellige::__rt::Key,
            __types: ::core::marker::PhantomData<fn() -> (#(#type_params,)*)>,
        }

        impl #impl_generics #launcher #ty_generics #where_clause {
            #[doc = #new_doc]
            #vis fn new(#(#fields: #field_types),*) -> Self {
                let __key = ::zellige::__rt::Key::of::<Self>(&(#(&#fields,)*));
                Self { #(#fields,)* __key, __types: ::core::marker::PhantomData }
            }

            #[doc = #launch_doc]
            #[allow(clippy::too_many_arguments)]
            #vis fn launch(&self, __stream: &::zellige::__rt::Stream, #(#host_params),*)
                -> ::core::result::Result<(), ::zellige::__rt::LaunchError>
            {
                ::zellige::Kernel::launch_args(self, __stream, &[#(#host_args),*])
            }
        }

        impl #impl_generics ::zellige::Kernel for #launcher #ty_generics #where_clause {
            fn signature(&self) -> ::zellige::__rt::Signature {
                ::zellige::__rt::Signature {
                    kernel: #name_text,
                    doc: #doc,
                    params: ::std::vec![#(#specs),*],
                    static_dims: &[#(#static_dims),*],
                }
            }

            fn key(&self) -> &::zellige::__rt::Key {
                &self.__key
            }

            fn record(&self, __sizes: &::zellige::__rt::Sizes)
                -> ::core::result::Result<::zellige::__rt::Func, ::zellige::__rt::RecordError>
            {
                ::zellige::__rt::record(
                    &::zellige::Kernel::signature(self),
                    __sizes,
                    #place,
                    |__binder| {
                        #(#binds)*
                        #name #turbofish (__binder.t(), #(#call),*);
                    },
                )
            }
        }
    }
}

fn doc_text(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for a in attrs {
        if let Meta::NameValue(nv) = &a.meta
            && nv.path.is_ident("doc")
            && let Expr::Lit(ExprLit { lit: Lit::Str(s), .. }) = &nv.value
        {
            lines.push(s.value().trim().to_owned());
        }
    }
    lines.join("\n")
}

fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut c = word.chars();
            c.next().map(|first| first.to_uppercase().chain(c).collect::<String>()).unwrap_or_default()
        })
        .collect()
}
