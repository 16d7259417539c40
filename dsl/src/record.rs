//! The recorder: where the ops of the kernel that is running on this thread go.
//!
//! Handles ([`Expr`](crate::Expr), [`Shared`](crate::Shared), ..) are plain ids into the recorder, so they are
//! `Copy` and carry no lifetime. Mistakes are collected, not thrown: a kernel is recorded to its end and all
//! its errors are reported together.

use std::cell::RefCell;
use std::panic::Location;
use zellige_ir::diagnostic::{Diagnostic, Severity};
use zellige_ir::{Buffer, FuncBuilder, Scope, Span};

/// The state of one recording.
pub(crate) struct Recorder {
    pub builder: FuncBuilder,
    pub diagnostics: Vec<Diagnostic>,
    /// True once `t.grid` was called.
    pub has_grid: bool,
}

thread_local!(static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) });

/// Runs `f` on the current recording, its ops placed at `at`.
pub(crate) fn with<R>(at: &'static Location<'static>, f: impl FnOnce(&mut Recorder) -> R) -> R {
    RECORDER.with(|r| {
        let mut r = r.borrow_mut();
        let r = r
            .as_mut()
            .expect("tile values exist only while a kernel is being recorded: call the kernel through its launcher");
        r.builder.set_span(Span::from(at));
        f(r)
    })
}

/// As [`with`], but does nothing when no kernel is being recorded (a handle dropped during a panic, say).
pub(crate) fn with_current(f: impl FnOnce(&mut Recorder)) {
    RECORDER.with(|r| {
        if let Ok(mut r) = r.try_borrow_mut()
            && let Some(r) = r.as_mut()
        {
            f(r);
        }
    });
}

impl Recorder {
    pub fn error(&mut self, d: Diagnostic) {
        self.diagnostics.push(d);
    }

    /// "shared tile allocated here", for a note that points at the buffer.
    pub fn origin(&self, buffer: Buffer) -> (Span, String) {
        let b = &self.builder.func().buffers[buffer];
        let what = match b.scope {
            Scope::Global => format!("tensor `{}` declared here", b.name),
            Scope::Shared => "shared tile allocated here".to_owned(),
            Scope::Fragment => "fragment allocated here".to_owned(),
            Scope::Local => "local buffer allocated here".to_owned(),
        };
        (b.span.clone(), what)
    }
}

/// Why a kernel could not be recorded: every mistake found, in source order.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordError {
    pub kernel: String,
    pub diagnostics: Vec<Diagnostic>,
}

impl std::fmt::Display for RecordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        let s = if n == 1 { "" } else { "s" };
        writeln!(f, "kernel `{}` has {n} error{s}", self.kernel)?;
        f.write_str(&zellige_ir::diagnostic::render(&self.diagnostics))
    }
}

impl std::error::Error for RecordError {}

/// Records one kernel: `bind` declares the parameters and runs the body.
pub(crate) fn record(
    name: &str,
    at: &'static Location<'static>,
    bind: impl FnOnce(),
) -> Result<zellige_ir::Func, RecordError> {
    /// Forgets the recording even if the body panics, so that the next one starts clean.
    struct Reset(Option<Recorder>);
    impl Drop for Reset {
        fn drop(&mut self) {
            let outer = self.0.take();
            RECORDER.with(|r| *r.borrow_mut() = outer);
        }
    }
    let recorder =
        Recorder { builder: FuncBuilder::new(name, Span::from(at)), diagnostics: Vec::new(), has_grid: false };
    let outer = RECORDER.with(|r| r.borrow_mut().replace(recorder));
    let reset = Reset(outer);
    bind();
    let mut done = RECORDER.with(|r| r.borrow_mut().take()).expect("the recording that was just started");
    drop(reset);
    if !done.has_grid {
        done.error(
            Diagnostic::error(format!("kernel `{name}` has no grid"))
                .at(Span::from(at), "")
                .help("call `let [bx] = t.grid([blocks], threads);` once, before the first tile op"),
        );
    }
    if done.diagnostics.iter().any(|d| d.severity == Severity::Error) {
        return Err(RecordError { kernel: name.to_owned(), diagnostics: done.diagnostics });
    }
    let func = done.builder.finish();
    let diagnostics = match zellige_ir::verify::verify(&func) {
        Ok(()) => unwritten(&func),
        Err(errors) => errors.iter().map(Diagnostic::from).collect(),
    };
    if diagnostics.is_empty() { Ok(func) } else { Err(RecordError { kernel: name.to_owned(), diagnostics }) }
}

/// One complaint for each tile that is read before anything can have been written to it.
fn unwritten(func: &zellige_ir::Func) -> Vec<Diagnostic> {
    let complaint = |(op, buffer): (zellige_ir::Op, Buffer)| {
        let tile = &func.buffers[buffer];
        let scope = tile.scope.name();
        Diagnostic::error(format!("a {scope} tile is read before anything is written to it"))
            .at(func.ops[op].span.clone(), "")
            .note_at(tile.span.clone(), format!("{scope} tile allocated here"))
            .help("`t.clear(tile)`, `t.fill(tile, value)` or a copy gives it its first contents")
    };
    zellige_ir::analysis::unwritten_reads(func).into_iter().map(complaint).collect()
}
