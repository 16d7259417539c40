//! Pictures of layouts: one cell per element, as an SVG document. Depends on the layout types and `DType`.

use std::fmt::Write as _;

use super::fragment::{FragmentLayout, WARP};
use super::memory::MemoryLayout;
use super::query::{BANK_BYTES, BANKS};
use super::space::Coord;
use crate::DType;

/// Rows and columns drawn at most; larger tiles show their first part and say so.
pub const MAX_CELLS: usize = 64;

const CELL_W: usize = 40;
const CELL_H: usize = 28;
const MARGIN: usize = 64;
const LINE: usize = 18;
const SWATCH: usize = 24;
/// Width of a letter of the text, rounded up.
const LETTER: usize = 7;
/// Enough for the title and the legend, however small the tile.
const MIN_WIDTH: usize = 2 * MARGIN + WARP * SWATCH;

/// Draws a fragment: each cell shows the thread (T) and register (R) of its element's primary place, coloured by lane,
/// darker for later warps. The last axis runs to the right, the others down. `notes` stand below the title.
pub fn fragment(layout: &FragmentLayout, title: &str, notes: &[String]) -> String {
    let warps = layout.warps();
    let copies = layout.replication().count();
    let facts = format!(
        "shape {}, {} threads, {} registers per thread, {}",
        shape_text(layout.shape()),
        layout.threads(),
        layout.regs_per_thread(),
        if copies == 1 { "no replicas".to_string() } else { format!("{copies} replicas of each element") },
    );
    let legend = Legend {
        title: "colour: lane of the primary place (left to right); each row of swatches is a warp",
        rows: (0..warps.min(8)).map(|w| (0..WARP).map(|lane| (lane_colour(lane, w, warps), lane)).collect()).collect(),
    };
    draw(layout.shape(), &Heading { title, facts, notes }, &legend, |coord| {
        let (reg, thread) = layout.owner(coord);
        Cell {
            fill: lane_colour(thread % WARP, thread / WARP, warps),
            top: format!("T{thread}"),
            bottom: format!("R{reg}"),
            tip: format!("{} in register {reg} of thread {thread}", coord_text(coord)),
        }
    })
}

/// Draws a memory tile: each cell shows the offset of its element and its bank (B), coloured by bank.
/// `notes` stand below the title.
pub fn memory(layout: &MemoryLayout, dtype: DType, title: &str, notes: &[String]) -> String {
    let facts = format!(
        "shape {} of {}, {} elements from first to last ({} bytes)",
        shape_text(layout.shape()),
        dtype.name(),
        layout.span(),
        dtype.bytes_for(layout.span()),
    );
    let legend = Legend {
        title: "colour: shared memory bank of the element's first byte",
        rows: vec![(0..BANKS).map(|b| (hue(b, BANKS, 78), b)).collect()],
    };
    draw(layout.shape(), &Heading { title, facts, notes }, &legend, |coord| {
        let offset = layout.offset(coord);
        let bank = offset * dtype.bits() / 8 / BANK_BYTES % BANKS;
        Cell {
            fill: hue(bank, BANKS, 78),
            top: offset.to_string(),
            bottom: format!("B{bank}"),
            tip: format!("{} at offset {offset}, bank {bank}", coord_text(coord)),
        }
    })
}

struct Cell {
    fill: String,
    top: String,
    bottom: String,
    tip: String,
}

struct Heading<'a> {
    title: &'a str,
    facts: String,
    notes: &'a [String],
}

struct Legend {
    title: &'static str,
    /// Rows of (colour, number).
    rows: Vec<Vec<(String, usize)>>,
}

/// Neighbouring numbers get neighbouring hues, so that the order of lanes or banks can be seen.
fn hue(i: usize, of: usize, lightness: usize) -> String {
    // HSL at 75 % saturation, as hexadecimal RGB: not every SVG reader knows CSS colour functions.
    let degrees = i * 330 / of;
    let lightness = lightness as f64 / 100.0;
    let reach = 0.75 * lightness.min(1.0 - lightness);
    let channel = |shift: usize| {
        let k = ((shift * 30 + degrees) % 360) as f64 / 30.0;
        (255.0 * (lightness - reach * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0))).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0), channel(8), channel(4))
}

fn lane_colour(lane: usize, warp: usize, warps: usize) -> String {
    hue(lane, WARP, 84 - 26 * warp / warps.max(1))
}

fn shape_text(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

fn coord_text(coord: &[usize]) -> String {
    format!("({})", coord.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The text in lines of at most so many letters, broken between words; longer words stand alone.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn draw(shape: &[usize], heading: &Heading<'_>, legend: &Legend, cell: impl Fn(&[usize]) -> Cell) -> String {
    let title = heading.title;
    let (cols, leading) = shape.split_last().map_or((1, shape), |(&c, rest)| (c, rest));
    let rows: usize = leading.iter().product();
    let (shown_rows, shown_cols) = (rows.min(MAX_CELLS), cols.min(MAX_CELLS));
    let width = (2 * MARGIN + shown_cols * CELL_W).max(MIN_WIDTH);
    let columns = (width - 2 * MARGIN) / LETTER;
    let lines: Vec<String> =
        std::iter::once(&heading.facts).chain(heading.notes).flat_map(|text| wrapped(text, columns)).collect();
    let top = (2 + lines.len()) * LINE + MARGIN;
    let legend_top = top + shown_rows * CELL_H + 2 * LINE;
    let height = legend_top + LINE + legend.rows.len() * SWATCH + LINE;

    let mut body = String::new();
    // Writing to a String cannot fail.
    macro_rules! put { ($($arg:tt)*) => { let _ = writeln!(body, $($arg)*); } }
    put!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="monospace" font-size="11">"#
    );
    put!("<title>{}</title>", escape(title));
    put!(r#"<rect width="{width}" height="{height}" fill="white"/>"#);
    put!(r#"<text x="{MARGIN}" y="{}" font-size="16" font-weight="bold">{}</text>"#, 2 * LINE, escape(title));
    for (i, line) in lines.iter().enumerate() {
        put!(r#"<text x="{MARGIN}" y="{}" fill="dimgray">{}</text>"#, (3 + i) * LINE, escape(line));
    }
    if (shown_rows, shown_cols) != (rows, cols) {
        let y = (3 + lines.len()) * LINE;
        put!(
            r#"<text x="{MARGIN}" y="{y}" fill="firebrick">first {shown_rows} of {rows} rows, first {shown_cols} of {cols} columns</text>"#
        );
    }

    let axis = shape.len().saturating_sub(1);
    put!(r#"<text x="{MARGIN}" y="{}" font-style="italic">dim{axis} &#8594;</text>"#, top - 22);
    if axis > 0 {
        let names: Vec<String> = (0..axis).map(|i| format!("dim{i}")).collect();
        let (x, y) = (MARGIN - 44, top + 4);
        put!(
            r#"<text x="{x}" y="{y}" font-style="italic" text-anchor="end" transform="rotate(-90 {x} {y})">&#8592; {}</text>"#,
            names.join(", ")
        );
    }
    for c in 0..shown_cols {
        let x = MARGIN + c * CELL_W + CELL_W / 2;
        put!(r#"<text x="{x}" y="{}" text-anchor="middle" fill="dimgray">{c}</text>"#, top - 6);
    }
    for r in 0..shown_rows {
        let lead = unflatten(r, leading);
        let y = top + r * CELL_H;
        let label = lead.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let (x, mid) = (MARGIN - 6, y + CELL_H / 2 + 4);
        put!(r#"<text x="{x}" y="{mid}" text-anchor="end" fill="dimgray">{label}</text>"#);
        for c in 0..shown_cols {
            let mut coord = lead.clone();
            if !shape.is_empty() {
                coord.push(c);
            }
            let Cell { fill, top: upper, bottom: lower, tip } = cell(&coord);
            let x = MARGIN + c * CELL_W;
            let mid = x + CELL_W / 2;
            put!(
                r#"<g><title>{tip}</title><rect x="{x}" y="{y}" width="{CELL_W}" height="{CELL_H}" fill="{fill}" stroke="white"/><text x="{mid}" y="{}" text-anchor="middle">{upper}</text><text x="{mid}" y="{}" text-anchor="middle" font-size="9">{lower}</text></g>"#,
                y + 13,
                y + 24
            );
        }
    }

    put!(r#"<text x="{MARGIN}" y="{legend_top}" fill="dimgray">{}</text>"#, legend.title);
    for (row, swatches) in legend.rows.iter().enumerate() {
        let y = legend_top + 6 + row * SWATCH;
        for (i, (fill, number)) in swatches.iter().enumerate() {
            let x = MARGIN + i * SWATCH;
            put!(r#"<rect x="{x}" y="{y}" width="{SWATCH}" height="{SWATCH}" fill="{fill}" stroke="white"/>"#);
            let (mid, base) = (x + SWATCH / 2, y + 16);
            put!(r#"<text x="{mid}" y="{base}" text-anchor="middle" font-size="9">{number}</text>"#);
        }
    }
    body.push_str("</svg>\n");
    body
}

/// Coordinates of row `r` when the axes `extents` run down the page, the last fastest.
fn unflatten(mut r: usize, extents: &[usize]) -> Coord {
    let mut out: Coord = extents.iter().map(|_| 0).collect();
    for (o, &e) in out.iter_mut().zip(extents).rev() {
        *o = r % e;
        r /= e;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::instances::{Swizzle, blocked, mma, swizzled, wgmma};

    /// Every opened element is closed, in order.
    fn well_formed(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').expect("tags end");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn fragments_show_threads_and_registers() {
        let svg = fragment(&mma::c(), "mma.m16n8k16 C & D", &["fixed by gemm".to_owned()]);
        well_formed(&svg);
        assert!(svg.contains("<title>mma.m16n8k16 C &amp; D</title>"));
        assert_eq!(svg.matches("<g>").count(), 128);
        assert!(svg.contains("(8, 3) in register 3 of thread 1"));
        assert!(svg.contains(">T31<") && svg.contains(">R3<"));
        assert!(svg.contains("no replicas") && svg.contains(">fixed by gemm</text>"));
        let svg = fragment(&blocked(&[16], 128, 4).unwrap(), "small", &[]);
        well_formed(&svg);
        assert!(svg.contains("32 replicas of each element"));
    }

    #[test]
    fn memory_shows_offsets_and_banks() {
        let svg = memory(&swizzled([8, 64], 16, Swizzle::B128).unwrap(), DType::BF16, "swizzle", &[]);
        well_formed(&svg);
        // Chunk 0 of row 1 stands at chunk 1: offset 64 + 8, byte 144, bank 4.
        assert!(svg.contains("(1, 0) at offset 72, bank 4"));
    }

    #[test]
    fn notes_are_broken_between_words() {
        assert_eq!(wrapped("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrapped("indivisible a", 4), ["indivisible", "a"]);
        assert!(wrapped("", 4).is_empty());
    }

    #[test]
    fn large_tiles_are_cut() {
        let svg = fragment(&wgmma::accumulator_tile([128, 256], 256, [2, 1]).unwrap(), "large", &[]);
        well_formed(&svg);
        assert_eq!(svg.matches("<g>").count(), MAX_CELLS * MAX_CELLS);
        assert!(svg.contains("first 64 of 128 rows, first 64 of 256 columns"));
        let svg = memory(&MemoryLayout::row_major(&[2, 3, 4]).unwrap(), DType::F32, "three axes", &[]);
        well_formed(&svg);
        assert!(svg.contains("(1, 2, 3) at offset 23, bank 23"));
    }
}
