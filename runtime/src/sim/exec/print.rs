//! Device `printf` and failed assertions: the run-time calls a kernel may make.

use super::access::How;
use super::regs::lanes;
use super::state::{Cluster, Warp};
use crate::sim::decode::op::{Inst, Space};
use crate::sim::fault::FaultKind;

impl Cluster<'_> {
    /// Reads a zero-terminated string at a generic address.
    fn c_string(&mut self, warp: &mut Warp, lane: usize, address: u64) -> String {
        let mut bytes = Vec::new();
        while bytes.len() < 4096 {
            let b = self.load_one(warp, lane, Space::Generic, address + bytes.len() as u64, 1, How::PLAIN) as u8;
            if b == 0 {
                break;
            }
            bytes.push(b);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A 64- or 32-bit call argument of a lane, from its call-parameter variable.
    fn argument(&mut self, warp: &mut Warp, lane: usize, slot: u32, bytes: u32) -> u64 {
        let at = warp.regs.w64[slot as usize][lane];
        self.load_one(warp, lane, Space::Local, at, bytes, How::PLAIN) as u64
    }

    pub fn printf(&mut self, warp: &mut Warp, i: &Inst, active: u32) {
        for l in lanes(active) {
            let format = self.argument(warp, l, i.a, 8);
            let args = self.argument(warp, l, i.b, 8);
            let format = self.c_string(warp, l, format);
            let text = self.format(warp, l, &format, args);
            self.counters.printed.push(text);
            let ret = warp.regs.w64[i.d as usize][l];
            if ret != u64::MAX {
                self.store_one(warp, l, Space::Local, ret, (4, 1), How::PLAIN);
            }
        }
    }

    /// Formats as C does; arguments lie one after another with their own alignment, as `vprintf` takes them.
    fn format(&mut self, warp: &mut Warp, lane: usize, format: &str, args: u64) -> String {
        let mut out = String::new();
        let mut at = args;
        let mut chars = format.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = String::new();
            let mut long = false;
            let verb = loop {
                match chars.next() {
                    Some(f @ ('0'..='9' | '.' | '-' | '+' | ' ' | '#')) => spec.push(f),
                    Some('l' | 'z') => long = true,
                    Some('h') => {}
                    other => break other.unwrap_or('%'),
                }
            };
            if verb == '%' {
                out.push('%');
                continue;
            }
            let wide = long || matches!(verb, 'f' | 'F' | 'e' | 'g' | 'E' | 'G' | 'a' | 'p' | 's');
            let bytes = if wide { 8 } else { 4 };
            at = at.next_multiple_of(bytes);
            let v = self.load_one(warp, lane, Space::Generic, at, bytes as u32, How::PLAIN) as u64;
            at += bytes;
            let text = match verb {
                'd' | 'i' if long => (v as i64).to_string(),
                'd' | 'i' => (v as i32).to_string(),
                'u' => v.to_string(),
                'x' => format!("{v:x}"),
                'X' => format!("{v:X}"),
                'o' => format!("{v:o}"),
                'c' => char::from(v as u8).to_string(),
                'p' => format!("{v:#x}"),
                's' => self.c_string(warp, lane, v),
                'e' | 'E' => format!("{:e}", f64::from_bits(v)),
                'g' | 'G' | 'a' => f64::from_bits(v).to_string(),
                _ => {
                    let digits = spec.split_once('.').and_then(|(_, d)| d.parse().ok()).unwrap_or(6);
                    format!("{:.digits$}", f64::from_bits(v))
                }
            };
            out.push_str(&pad(&text, &spec));
        }
        out
    }

    pub fn assert_fail(&mut self, warp: &mut Warp, i: &Inst, active: u32) {
        let lane = active.trailing_zeros() as usize;
        let slots: Vec<u32> = self.env.kernel.pool[i.e as usize..i.e as usize + 5].to_vec();
        let message = self.argument(warp, lane, slots[0], 8);
        let file = self.argument(warp, lane, slots[1], 8);
        let line = self.argument(warp, lane, slots[2], 4);
        let (message, file) = (self.c_string(warp, lane, message), self.c_string(warp, lane, file));
        self.fatal(warp, lane, FaultKind::Assertion, || format!("assertion `{message}` failed at {file}:{line}"));
    }
}

/// Applies the width of a conversion such as `%-8d` or `%04x`.
fn pad(text: &str, spec: &str) -> String {
    let left = spec.starts_with('-');
    let width: String =
        spec.trim_start_matches(['-', '+', ' ', '#']).chars().take_while(char::is_ascii_digit).collect();
    let zero = width.starts_with('0') && !left;
    let n: usize = width.parse().unwrap_or(0);
    match (left, zero) {
        (true, _) => format!("{text:<n$}"),
        (false, true) => match text.strip_prefix('-') {
            Some(rest) => format!("-{rest:0>width$}", width = n.saturating_sub(1)),
            None => format!("{text:0>n$}"),
        },
        (false, false) => format!("{text:>n$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::pad;

    #[test]
    fn widths() {
        assert_eq!(pad("7", "3"), "  7");
        assert_eq!(pad("7", "-3"), "7  ");
        assert_eq!(pad("-7", "04"), "-007");
    }
}
