//! `zellige layout`: pictures of where the elements of a tile are.

use super::{Passed, args, lookup};
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use zellige_codegen::ptx::{Layouts, TileLayout, layouts};
use zellige_ir::layout::svg;
use zellige_ir::text::Names;
use zellige_ir::{Buffer, Func};

pub fn run(args: &args::Layout) -> Result<Passed> {
    let options = lookup::target(args.target.as_deref())?;
    let recorded = lookup::recorded(&args.kernel, args.case.as_deref(), &args.settings)?;
    let func = &recorded.func;
    let Layouts { tiles, explain } = layouts(func, options.target)?;
    let Some(wanted) = &args.buffer else {
        return list(args, func, &tiles);
    };
    let (buffer, layout) = find(wanted, func, &tiles).ok_or_else(|| unknown(wanted, &args.kernel, func, &tiles))?;
    let title = format!("{}, {}", args.kernel, describe(func, *buffer));
    let mut notes = vec![format!("{} for {}, at {}", recorded.case, options.target, func.buffers[*buffer].span)];
    notes.extend(reasons(&explain, func, *buffer));
    let picture = match layout {
        TileLayout::Registers(layout) => svg::fragment(layout, &title, &notes),
        TileLayout::Shared(layout) => svg::memory(layout, func.buffers[*buffer].dtype, &title, &notes),
    };
    if let Some(path) = &args.output {
        std::fs::write(path, &picture).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        let mut value = entry(func, *buffer, layout);
        value["notes"] = json!(notes);
        match &args.output {
            Some(path) => value["file"] = json!(path),
            None => value["svg"] = json!(picture),
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else if args.output.is_none() {
        print!("{picture}");
    }
    Ok(true)
}

/// The tile's name, or its number where it has none.
fn name(func: &Func, buffer: Buffer) -> String {
    let name = &func.buffers[buffer].name;
    if name.is_empty() { Names::new(func).buffer(func, buffer) } else { name.clone() }
}

/// `acc ($2): fragment f32[128, 128]`.
fn describe(func: &Func, buffer: Buffer) -> String {
    let data = &func.buffers[buffer];
    let shape = data.static_shape().unwrap_or_default();
    let (name, number) = (&data.name, Names::new(func).buffer(func, buffer));
    let called = if name.is_empty() { number } else { format!("{name} ({number})") };
    format!("{called}: {} {}{shape:?}", data.scope.name(), data.dtype)
}

/// The decisions about one tile.
fn reasons(explain: &[String], func: &Func, buffer: Buffer) -> Vec<String> {
    let (name, id) = (&func.buffers[buffer].name, buffer.to_string());
    let name = if name.is_empty() { &id } else { name };
    let is_name = |word: &str| word.trim_end_matches([',', ':']) == name;
    explain.iter().filter(|line| line.split_whitespace().any(is_name)).cloned().collect()
}

type Tile = (Buffer, TileLayout);

fn find<'a>(wanted: &str, func: &Func, tiles: &'a [Tile]) -> Option<&'a Tile> {
    let (number, names) = (format!("${}", wanted.trim_start_matches('$')), Names::new(func));
    tiles
        .iter()
        .find(|(b, _)| func.buffers[*b].name == wanted)
        .or_else(|| tiles.iter().find(|(b, _)| names.buffer(func, *b) == number))
}

fn unknown(wanted: &str, kernel: &str, func: &Func, tiles: &[Tile]) -> anyhow::Error {
    if func.buffers.iter().any(|(_, data)| data.name == wanted) {
        return anyhow!(
            "`{wanted}` is a parameter of `{kernel}`: its layout is the caller's; `zellige layout {kernel}` shows the tiles"
        );
    }
    let names: Vec<String> = tiles.iter().map(|(b, _)| name(func, *b)).collect();
    let nearest = lookup::nearest(wanted, names.iter().map(String::as_str));
    anyhow!("no tile `{wanted}` in `{kernel}`{nearest}; `zellige layout {kernel}` shows them all")
}

fn entry(func: &Func, buffer: Buffer, layout: &TileLayout) -> serde_json::Value {
    let data = &func.buffers[buffer];
    let text = match layout {
        TileLayout::Registers(layout) => layout.to_string(),
        TileLayout::Shared(layout) => layout.to_string(),
    };
    json!({
        "buffer": name(func, buffer),
        "scope": data.scope.name(),
        "dtype": data.dtype.name(),
        "shape": data.static_shape(),
        "place": data.span.to_string(),
        "layout": text,
    })
}

fn list(args: &args::Layout, func: &Func, tiles: &[Tile]) -> Result<Passed> {
    if args.json {
        let rows: Vec<serde_json::Value> = tiles.iter().map(|(b, l)| entry(func, *b, l)).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(true);
    }
    for (buffer, layout) in tiles {
        let how = match layout {
            TileLayout::Registers(l) => format!("{} registers of each of {} threads", l.regs_per_thread(), l.threads()),
            TileLayout::Shared(l) if l.is_strided() => format!("shared memory, strides {:?}", l.strides()),
            TileLayout::Shared(_) => "shared memory, swizzled".to_owned(),
        };
        println!("{:<42} {how}, {}", describe(func, *buffer), func.buffers[*buffer].span);
    }
    Ok(true)
}
