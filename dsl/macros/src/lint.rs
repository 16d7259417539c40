//! What a kernel body may not contain, each with the way out. Run before the rewrites, on the author's tokens.

use std::collections::HashSet;
use syn::visit::{self, Visit};
use syn::{BinOp, Block, Expr, Ident, Pat};

/// Methods of `t` that open a device loop.
const LOOPS: [&str; 6] = ["serial", "unrolled", "pipelined", "parallel", "vectorized", "persistent"];

/// All findings in a body whose recorder is called `t`.
pub fn check(block: &Block, t: &Ident) -> Vec<syn::Error> {
    let mut lint = Lint { t: t.clone(), errors: Vec::new(), device: None, host_loops: 0 };
    lint.visit_block(block);
    lint.errors
}

struct Lint {
    t: Ident,
    errors: Vec<syn::Error>,
    /// Names bound inside the outermost device loop around this point; `None` outside device loops.
    device: Option<HashSet<String>>,
    /// Host loops between this point and the innermost device loop: `break` belongs to them.
    host_loops: usize,
}

impl Lint {
    fn error(&mut self, span: proc_macro2::Span, message: String) {
        self.errors.push(syn::Error::new(span, message));
    }

    fn is_device_loop(&self, e: &Expr) -> bool {
        let Expr::MethodCall(call) = e else { return false };
        let Expr::Path(receiver) = &*call.receiver else { return false };
        receiver.path.is_ident(&self.t) && LOOPS.iter().any(|l| call.method == l)
    }

    fn assigned(&mut self, left: &Expr) {
        let mut base = left;
        while let Expr::Field(f) = base {
            base = &f.base;
        }
        let Expr::Path(p) = base else { return };
        let (Some(bound), Some(name)) = (&self.device, p.path.get_ident()) else { return };
        if !bound.contains(&name.to_string()) {
            self.error(
                name.span(),
                format!(
                    "host variable `{name}` is assigned in a device loop, whose body is recorded only once: use a device \
                     variable, `let {name} = t.var(..)` and `{name}.set(..)`, or unroll with a `for` over a host range"
                ),
            );
        }
    }
}

impl<'a> Visit<'a> for Lint {
    fn visit_expr(&mut self, e: &'a Expr) {
        match e {
            Expr::While(w) => self.error(
                w.while_token.span,
                "`while` is not supported in a kernel: use `for i in t.serial(n)` for a device loop, `t.repeat_while(cond, body)` \
                 for a device condition, or a `for` over a host range to unroll"
                    .to_owned(),
            ),
            Expr::Loop(l) => self.error(
                l.loop_token.span,
                "`loop` is not supported in a kernel: use `t.repeat_while(cond, body)`, or a `for` over a host range to unroll"
                    .to_owned(),
            ),
            Expr::Await(a) => self.error(a.await_token.span, "a kernel cannot be async".to_owned()),
            Expr::Break(b) if self.device.is_some() && self.host_loops == 0 => self.error(
                b.break_token.span,
                "`break` leaves a device loop: device loops always run to their extent; guard the rest of the body with `if`, \
                 or bound the loop by its extent"
                    .to_owned(),
            ),
            Expr::Continue(c) if self.device.is_some() && self.host_loops == 0 => self.error(
                c.continue_token.span,
                "`continue` in a device loop: guard the rest of the body with `if` instead".to_owned(),
            ),
            Expr::Return(r) if self.device.is_some() => self.error(
                r.return_token.span,
                "`return` leaves a device loop: device loops always run to their extent; guard the rest of the body with `if`"
                    .to_owned(),
            ),
            Expr::Assign(a) => self.assigned(&a.left),
            Expr::Binary(b) if is_assignment(&b.op) => self.assigned(&b.left),
            _ => {}
        }
        visit::visit_expr(self, e);
    }

    fn visit_expr_for_loop(&mut self, f: &'a syn::ExprForLoop) {
        self.visit_expr(&f.expr);
        if self.is_device_loop(&f.expr) {
            let outer = self.device.clone();
            let hosts = std::mem::take(&mut self.host_loops);
            self.device.get_or_insert_default();
            self.visit_pat(&f.pat);
            self.visit_block(&f.body);
            self.device = outer;
            self.host_loops = hosts;
        } else {
            self.visit_pat(&f.pat);
            self.host_loops += 1;
            self.visit_block(&f.body);
            self.host_loops -= 1;
        }
    }

    fn visit_pat(&mut self, p: &'a Pat) {
        if let (Pat::Ident(id), Some(bound)) = (p, &mut self.device) {
            bound.insert(id.ident.to_string());
        }
        visit::visit_pat(self, p);
    }

    fn visit_item(&mut self, _i: &'a syn::Item) {}
}

fn is_assignment(op: &BinOp) -> bool {
    matches!(
        op,
        BinOp::AddAssign(_)
            | BinOp::SubAssign(_)
            | BinOp::MulAssign(_)
            | BinOp::DivAssign(_)
            | BinOp::RemAssign(_)
            | BinOp::BitXorAssign(_)
            | BinOp::BitAndAssign(_)
            | BinOp::BitOrAssign(_)
            | BinOp::ShlAssign(_)
            | BinOp::ShrAssign(_)
    )
}
