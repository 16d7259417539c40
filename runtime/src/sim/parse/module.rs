//! Module-level directives, variables, parameter lists and performance directives.

use std::collections::HashMap;
use std::sync::Arc;

use super::Cursor;
use super::ast::{Ast, Entry, ParamDecl, Ty, VarSpace, Variable};
use super::body;
use super::lexer::{Tok, lex};
use crate::sim::error::SimError;

/// Parses a module.
///
/// # Errors
/// [`SimError::Parse`] with line, column and text; [`SimError::NotSimulated`] for directives outside the simulator's reach.
pub fn parse(text: &str) -> Result<Ast, SimError> {
    let lexed = lex(text)?;
    let mut c = Cursor { text, tokens: &lexed.tokens, at: 0 };
    let mut ast = Ast { version: (0, 0), target: String::new(), vars: Vec::new(), entries: Vec::new() };
    let files = file_table(&c);
    loop {
        match c.peek() {
            Tok::End => return Ok(ast),
            Tok::Dot("version") => {
                c.next();
                ast.version = version(&mut c)?;
            }
            Tok::Dot("target") => {
                c.next();
                ast.target = c.name("a target")?.to_string();
                while c.eat(',') {
                    c.name("a target option")?;
                }
            }
            Tok::Dot("address_size") => {
                c.next();
                let bits = c.int("32 or 64")?;
                if bits != 64 {
                    return Err(c.not_simulated(format!("{bits}-bit addresses")));
                }
            }
            Tok::Dot("file") => skip_file(&mut c)?,
            Tok::Dot("section") => skip_braces(&mut c)?,
            Tok::Dot("visible" | "extern" | "weak" | "common") => {
                let external = c.next() == Tok::Dot("extern");
                match c.peek() {
                    Tok::Dot("entry") => ast.entries.push(entry(&mut c, &lexed.notes, &files)?),
                    Tok::Dot("func") => function(&mut c)?,
                    _ => ast.vars.extend(variables(&mut c, external)?),
                }
            }
            Tok::Dot("entry") => ast.entries.push(entry(&mut c, &lexed.notes, &files)?),
            Tok::Dot("func") => function(&mut c)?,
            Tok::Dot("global" | "const" | "shared") => ast.vars.extend(variables(&mut c, false)?),
            Tok::Dot("pragma") => {
                while !c.eat(';') {
                    c.next();
                }
            }
            _ => return Err(c.error(format!("expected a directive, found {}", c.found()))),
        }
    }
}

/// `.file 1 "path"` may stand after the kernels that refer to it, so the table is read first.
fn file_table(c: &Cursor<'_>) -> HashMap<u64, Arc<str>> {
    c.tokens
        .windows(3)
        .filter_map(|w| match (w[0].tok, w[1].tok, w[2].tok) {
            (Tok::Dot("file"), Tok::Int(id), Tok::Str(path)) => Some((id, path.into())),
            _ => None,
        })
        .collect()
}

fn version(c: &mut Cursor<'_>) -> Result<(u32, u32), SimError> {
    match c.next() {
        // `8.0` lexes as a decimal literal.
        Tok::F64(bits) => {
            let tenths = (f64::from_bits(bits) * 10.0).round() as u32;
            Ok((tenths / 10, tenths % 10))
        }
        _ => Err(c.error("expected a version such as 8.0".into())),
    }
}

fn skip_file(c: &mut Cursor<'_>) -> Result<(), SimError> {
    c.next();
    c.int("a file number")?;
    c.next();
    while c.eat(',') {
        c.next();
    }
    Ok(())
}

fn skip_braces(c: &mut Cursor<'_>) -> Result<(), SimError> {
    while c.peek() != Tok::Punct('{') {
        if c.peek() == Tok::End {
            return Err(c.error("expected `{`".into()));
        }
        c.next();
    }
    let mut depth = 0;
    loop {
        match c.next() {
            Tok::Punct('{') => depth += 1,
            Tok::Punct('}') => depth -= 1,
            Tok::End => return Err(c.error("`{` is not closed".into())),
            _ => {}
        }
        if depth == 0 {
            return Ok(());
        }
    }
}

/// Accepts declarations of device functions; a body means a call could reach it, which is not simulated.
fn function(c: &mut Cursor<'_>) -> Result<(), SimError> {
    c.next();
    loop {
        match c.next() {
            Tok::Punct(';') => return Ok(()),
            Tok::Punct('{') => return Err(c.not_simulated("a `.func` with a body".into())),
            Tok::End => return Err(c.error("`.func` is not finished".into())),
            _ => {}
        }
    }
}

/// `.space .align N .ty name[count] = init, name2 ...;` The cursor stands on the space.
pub(super) fn variables(c: &mut Cursor<'_>, external: bool) -> Result<Vec<Variable>, SimError> {
    let space = match c.next() {
        Tok::Dot("global") => VarSpace::Global,
        Tok::Dot("const") => VarSpace::Const,
        Tok::Dot("shared") => VarSpace::Shared,
        Tok::Dot("local") => VarSpace::Local,
        Tok::Dot("param") => VarSpace::CallParam,
        _ => {
            c.at -= 1;
            return Err(c.error(format!("expected a state space, found {}", c.found())));
        }
    };
    let (align, ty) = align_and_type(c)?;
    let mut vars = Vec::new();
    loop {
        let name = c.name("a variable name")?.to_string();
        let (count, unsized_array) = array_suffix(c)?;
        let bytes = if unsized_array { 0 } else { count * ty.bytes() };
        let init = if c.eat('=') { initialiser(c, ty, bytes)? } else { Vec::new() };
        if external && space != VarSpace::Shared {
            return Err(c.not_simulated(format!("external variable `{name}`")));
        }
        vars.push(Variable { name, space, align: align.unwrap_or(ty.bytes()), bytes, init });
        if c.eat(';') {
            return Ok(vars);
        }
        c.expect(',')?;
    }
}

/// Reads `.align N`, attributes that do not change the layout, and the element type (with `.v2`/`.v4` folded into its size).
fn align_and_type(c: &mut Cursor<'_>) -> Result<(Option<u32>, Ty), SimError> {
    let mut align = None;
    loop {
        match c.next() {
            Tok::Dot("align") => align = Some(c.int32("an alignment")?),
            Tok::Dot("ptr" | "global" | "shared" | "const" | "local") => {}
            Tok::Dot(word) => {
                if let Some(ty) = Ty::from_word(word) {
                    return Ok((align, ty));
                }
                c.at -= 1;
                return Err(c.not_simulated(format!("`.{word}` in a declaration")));
            }
            _ => {
                c.at -= 1;
                return Err(c.error(format!("expected a type, found {}", c.found())));
            }
        }
    }
}

/// `[4][8]` gives 32; `[]` gives an unsized array.
fn array_suffix(c: &mut Cursor<'_>) -> Result<(u32, bool), SimError> {
    let mut count = 1u32;
    let mut unsized_array = false;
    while c.eat('[') {
        if c.eat(']') {
            unsized_array = true;
            continue;
        }
        let n = c.int32("an array length")?;
        count = count.checked_mul(n).ok_or_else(|| c.error("array too large".into()))?;
        c.expect(']')?;
    }
    Ok((count, unsized_array))
}

fn initialiser(c: &mut Cursor<'_>, ty: Ty, bytes: u32) -> Result<Vec<u8>, SimError> {
    let mut out = Vec::with_capacity(bytes as usize);
    let mut depth = 0;
    loop {
        if c.eat('{') {
            depth += 1;
            continue;
        }
        let negative = c.eat('-');
        let bits = match c.next() {
            Tok::Int(v) if negative => v.wrapping_neg(),
            Tok::Int(v) => v,
            Tok::F32(b) => u64::from(b),
            Tok::F64(b) if ty == Ty::F32 => {
                u64::from((f64::from_bits(b) as f32 * if negative { -1.0 } else { 1.0 }).to_bits())
            }
            Tok::F64(b) => b,
            _ => {
                c.at -= 1;
                return Err(c.not_simulated(format!("initialiser {}", c.found())));
            }
        };
        out.extend_from_slice(&bits.to_le_bytes()[..ty.bytes() as usize]);
        while depth > 0 && c.eat('}') {
            depth -= 1;
        }
        if depth == 0 {
            break;
        }
        c.expect(',')?;
    }
    if out.len() > bytes as usize {
        return Err(c.error(format!("{} bytes of initial values for a variable of {bytes} bytes", out.len())));
    }
    out.resize(bytes as usize, 0);
    Ok(out)
}

fn entry(
    c: &mut Cursor<'_>,
    notes: &HashMap<u32, crate::sim::error::SourceRef>,
    files: &HashMap<u64, Arc<str>>,
) -> Result<Entry, SimError> {
    let line = c.line();
    c.next();
    let name = c.name("a kernel name")?.to_string();
    let mut params = Vec::new();
    if c.eat('(') && !c.eat(')') {
        let mut offset = 0u32;
        loop {
            if c.next() != Tok::Dot("param") {
                c.at -= 1;
                return Err(c.error(format!("expected `.param`, found {}", c.found())));
            }
            let (align, ty) = align_and_type(c)?;
            // `.ptr .global .align 16` after the type describes the pointee, not the parameter.
            let mut pointee = false;
            while let Tok::Dot(word) = c.peek() {
                c.next();
                pointee |= word == "ptr";
                if word == "align" {
                    c.int("an alignment")?;
                }
            }
            let name = c.name("a parameter name")?.to_string();
            let (count, _) = array_suffix(c)?;
            let align = if pointee { ty.bytes() } else { align.unwrap_or(ty.bytes()) };
            offset = offset.next_multiple_of(align.max(1));
            let bytes = ty.bytes() * count;
            params.push(ParamDecl { name, align, bytes, offset });
            offset += bytes;
            if c.eat(')') {
                break;
            }
            c.expect(',')?;
        }
    }
    let mut e = Entry {
        name,
        params,
        regs: Vec::new(),
        vars: Vec::new(),
        instrs: Vec::new(),
        labels: Vec::new(),
        required_threads: None,
        max_threads: None,
        required_cluster: None,
        line,
    };
    loop {
        match c.peek() {
            Tok::Dot("reqntid") => e.required_threads = Some(dims(c)?),
            Tok::Dot("maxntid") => e.max_threads = Some(dims(c)?),
            Tok::Dot("reqnctapercluster") => e.required_cluster = Some(dims(c)?),
            Tok::Dot("minnctapersm" | "maxnreg" | "maxnctapersm" | "maxclusterrank") => {
                c.next();
                c.int("a count")?;
            }
            Tok::Dot("explicitcluster" | "noreturn" | "blocksareclusters") => {
                c.next();
            }
            Tok::Dot("pragma") => {
                while !c.eat(';') {
                    c.next();
                }
            }
            Tok::Punct('{') => break,
            _ => return Err(c.error(format!("expected the kernel body, found {}", c.found()))),
        }
    }
    body::parse(c, &mut e, notes, files)?;
    Ok(e)
}

fn dims(c: &mut Cursor<'_>) -> Result<[u32; 3], SimError> {
    c.next();
    let mut d = [c.int32("a dimension")?, 1, 1];
    for slot in &mut d[1..] {
        if !c.eat(',') {
            break;
        }
        *slot = c.int32("a dimension")?;
    }
    Ok(d)
}
