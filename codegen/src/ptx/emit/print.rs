//! Device `print`: a call of the driver's `vprintf` with the arguments in local memory.

use super::Emitter;
use crate::ptx::simt::{Ty, Val};
use std::fmt::Write;

/// Name of the area that the arguments are passed in.
pub(super) const ARGS: &str = "zellige_print_args";

impl Emitter<'_> {
    pub(super) fn print(&mut self, format: &str, args: &[Val]) {
        let index = match self.formats.iter().position(|f| f == format) {
            Some(i) => i,
            None => {
                self.formats.push(format.to_string());
                self.formats.len() - 1
            }
        };
        self.print_bytes = self.print_bytes.max(8 * args.len().max(1));
        let regs: Vec<String> = args.iter().map(|&v| self.reg(v)).collect();
        self.line("{");
        self.depth += 1;
        self.line(".reg .b64 %fmt, %args;");
        self.line(".param .b64 p_format;");
        self.line(".param .b64 p_args;");
        self.line(".param .b32 p_result;");
        let mut at = 0;
        self.line(&format!("mov.u64 %args, {ARGS};"));
        for (&v, r) in args.iter().zip(&regs) {
            let ty = self.k.ty(v);
            let bytes = if ty == Ty::B32 { 4 } else { 8 };
            at = usize::next_multiple_of(at, bytes);
            self.line(&format!("st.local.{ty} [%args+{at}], {r};"));
            at += bytes;
        }
        self.line("cvta.local.u64 %args, %args;");
        self.line(&format!("mov.u64 %fmt, zellige_format{index};"));
        self.line("cvta.global.u64 %fmt, %fmt;");
        self.line("st.param.b64 [p_format], %fmt;");
        self.line("st.param.b64 [p_args], %args;");
        self.line("call.uni (p_result), vprintf, (p_format, p_args);");
        self.depth -= 1;
        self.line("}");
    }

    /// Module-level declarations that the prints of the body need.
    pub(super) fn print_declarations(&self, text: &mut String) {
        if self.formats.is_empty() {
            return;
        }
        let _ = writeln!(text, ".extern .func (.param .b32 result) vprintf (.param .b64 format, .param .b64 args);");
        for (i, format) in self.formats.iter().enumerate() {
            let bytes: Vec<String> = format.bytes().chain([0]).map(|b| b.to_string()).collect();
            let _ =
                writeln!(text, ".global .align 1 .b8 zellige_format{i}[{}] = {{{}}};", bytes.len(), bytes.join(", "));
        }
    }
}
