//! The local, span-preserving rewrites of a kernel body: comparisons, `&&`, `||`, subscript assignment and
//! statement-`if`. Host values behave as before; device values are recorded. Tiles learn the names they are bound to.

use quote::quote_spanned;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{BinOp, Block, Expr, Item, Local, Pat, Stmt, parse_quote_spanned};

/// Rewrites the body of a kernel or helper function.
pub fn body(block: &mut Block) {
    Rewrite.unit_block(block);
}

struct Rewrite;

impl Rewrite {
    /// A block whose value is `()`: an `if` at its end is a statement.
    fn unit_block(&mut self, block: &mut Block) {
        for stmt in &mut block.stmts {
            self.stmt(stmt, true);
        }
    }

    fn stmt(&mut self, stmt: &mut Stmt, unit: bool) {
        if let Stmt::Expr(expr, semi) = stmt
            && (unit || semi.is_some())
        {
            self.unit_expr(expr);
            return;
        }
        if let Stmt::Expr(Expr::If(i), None) = stmt
            && i.else_branch.is_none()
        {
            if let Stmt::Expr(expr, _) = stmt {
                self.unit_expr(expr);
            }
            return;
        }
        visit_mut::visit_stmt_mut(self, stmt);
    }

    /// An expression in statement position.
    fn unit_expr(&mut self, expr: &mut Expr) {
        match expr {
            Expr::If(i) if !has_let(&i.cond) => {
                self.visit_expr_mut(&mut i.cond);
                self.unit_block(&mut i.then_branch);
                let span = i.if_token.span;
                let otherwise = i.else_branch.as_mut().map(|(_, other)| {
                    match &mut **other {
                        Expr::Block(b) => self.unit_block(&mut b.block),
                        other => self.unit_expr(other),
                    }
                    quote_spanned!(span=> if __branch.enter_else() { #other })
                });
                let (cond, then) = (&i.cond, &i.then_branch);
                *expr = parse_quote_spanned!(span=> {
                    let __branch = ::zellige::__rt::Condition::branch(#cond);
                    if __branch.enter_then() #then
                    #otherwise
                });
            }
            Expr::If(i) => {
                self.visit_expr_mut(&mut i.cond);
                self.unit_block(&mut i.then_branch);
                match i.else_branch.as_mut().map(|(_, other)| &mut **other) {
                    Some(Expr::Block(b)) => self.unit_block(&mut b.block),
                    Some(other) => self.unit_expr(other),
                    None => {}
                }
            }
            Expr::Block(b) => self.unit_block(&mut b.block),
            Expr::ForLoop(_) | Expr::Match(_) => self.visit_expr_mut(expr),
            _ => self.visit_expr_mut(expr),
        }
    }
}

impl VisitMut for Rewrite {
    fn visit_block_mut(&mut self, block: &mut Block) {
        let last = block.stmts.len().saturating_sub(1);
        for (i, stmt) in block.stmts.iter_mut().enumerate() {
            self.stmt(stmt, i != last);
        }
    }

    fn visit_expr_for_loop_mut(&mut self, f: &mut syn::ExprForLoop) {
        self.visit_expr_mut(&mut f.expr);
        self.unit_block(&mut f.body);
    }

    fn visit_local_mut(&mut self, local: &mut Local) {
        visit_mut::visit_local_mut(self, local);
        if let Some(init) = &mut local.init {
            name_tiles(&local.pat, &mut init.expr);
        }
    }

    fn visit_item_mut(&mut self, _item: &mut Item) {}

    fn visit_expr_mut(&mut self, e: &mut Expr) {
        visit_mut::visit_expr_mut(self, e);
        match e {
            Expr::Binary(b) => {
                let span = b.op.span();
                let (l, r) = (&b.left, &b.right);
                if let Some(name) = comparison(&b.op) {
                    let name = syn::Ident::new(name, span);
                    *e = parse_quote_spanned!(span=> ::zellige::cmp::#name(&(#l), &(#r)));
                } else if matches!(b.op, BinOp::And(_)) && !has_let(l) && !has_let(r) {
                    let r = without_parens(r);
                    *e = parse_quote_spanned!(span=> ::zellige::__rt::Logic::and(#l, || #r));
                } else if matches!(b.op, BinOp::Or(_)) {
                    let r = without_parens(r);
                    *e = parse_quote_spanned!(span=> ::zellige::__rt::Logic::or(#l, || #r));
                } else if let (Some(op), Expr::Index(ix)) = (compound(&b.op), &*b.left) {
                    let (base, at) = (&ix.expr, &ix.index);
                    let op = operator(op, span);
                    *e = parse_quote_spanned!(span=> {
                        let __at = #at;
                        ::zellige::__rt::store(&#base, __at, #base[__at] #op (#r))
                    });
                }
            }
            Expr::Assign(a) => {
                if let Expr::Index(ix) = &*a.left {
                    let (base, at, value, span) = (&ix.expr, &ix.index, &a.right, a.eq_token.span());
                    *e = parse_quote_spanned!(span=> ::zellige::__rt::store(&#base, #at, #value));
                }
            }
            _ => {}
        }
    }
}

/// The methods of the witness that allocate a tile.
const ALLOCATIONS: [&str; 4] = ["shared", "fragment", "local", "var"];

/// Tells tiles that are bound to variables what these are called, for messages and explanations.
fn name_tiles(pat: &Pat, init: &mut Expr) {
    match (pat, init) {
        (Pat::Type(typed), init) => name_tiles(&typed.pat, init),
        (Pat::Tuple(pats), Expr::Tuple(inits)) if pats.elems.len() == inits.elems.len() => {
            pats.elems.iter().zip(&mut inits.elems).for_each(|(pat, init)| name_tiles(pat, init));
        }
        (Pat::Ident(variable), init @ Expr::MethodCall(_)) => {
            let Expr::MethodCall(call) = &*init else { return };
            let allocates = ALLOCATIONS.iter().any(|a| call.method == a) && matches!(*call.receiver, Expr::Path(_));
            if allocates {
                let (name, span) = (variable.ident.to_string(), call.method.span());
                *init = parse_quote_spanned!(span=> ::zellige::__rt::named(#name, #init));
            }
        }
        _ => {}
    }
}

/// True when the condition binds a pattern, so that it must stay a host condition.
fn has_let(cond: &Expr) -> bool {
    match cond {
        Expr::Let(_) => true,
        Expr::Binary(b) => has_let(&b.left) || has_let(&b.right),
        Expr::Paren(p) => has_let(&p.expr),
        _ => false,
    }
}

/// `x` for `(x)`: parentheses around the body of a closure draw a warning, at tokens the author wrote.
fn without_parens(e: &Expr) -> &Expr {
    match e {
        Expr::Paren(p) => without_parens(&p.expr),
        _ => e,
    }
}

/// The operator token of a compound assignment, placed where the author wrote it.
fn operator(text: &str, span: proc_macro2::Span) -> BinOp {
    let tokens: proc_macro2::TokenStream = text.parse().expect("the table holds operators");
    let placed = tokens.into_iter().map(|mut t| {
        t.set_span(span);
        t
    });
    syn::parse2(placed.collect()).expect("the table holds operators")
}

fn comparison(op: &BinOp) -> Option<&'static str> {
    Some(match op {
        BinOp::Lt(_) => "lt",
        BinOp::Le(_) => "le",
        BinOp::Gt(_) => "gt",
        BinOp::Ge(_) => "ge",
        BinOp::Eq(_) => "eq",
        BinOp::Ne(_) => "ne",
        _ => return None,
    })
}

fn compound(op: &BinOp) -> Option<&'static str> {
    Some(match op {
        BinOp::AddAssign(_) => "+",
        BinOp::SubAssign(_) => "-",
        BinOp::MulAssign(_) => "*",
        BinOp::DivAssign(_) => "/",
        BinOp::RemAssign(_) => "%",
        BinOp::BitAndAssign(_) => "&",
        BinOp::BitOrAssign(_) => "|",
        BinOp::BitXorAssign(_) => "^",
        BinOp::ShlAssign(_) => "<<",
        BinOp::ShrAssign(_) => ">>",
        _ => return None,
    })
}
