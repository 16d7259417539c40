//! `zellige check`, and `zellige` alone.

use super::{Passed, args, lookup, progress};
use crate::library::Case;
use crate::run::{Outcome, run as run_problem};
use anyhow::Result;
use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;
use std::time::{Duration, Instant};
use zellige::runtime::{Device, Stream};

/// One problem's result, as the table and the JSON show it.
#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    case: String,
    device: String,
    /// Recording the kernel and compiling it.
    compile_ms: Option<f64>,
    /// Of that, from the kernel's Rust body to machine code or PTX; the rest is the driver's own compiler.
    codegen_ms: Option<f64>,
    from_cache: bool,
    run_ms: Option<f64>,
    /// Making the inputs.
    inputs_ms: Option<f64>,
    /// Computing the reference and comparing.
    verify_ms: Option<f64>,
    gflops: Option<f64>,
    gb_per_s: Option<f64>,
    /// Output that used up most of its tolerance, its error and the tolerance.
    output: Option<&'static str>,
    error: Option<f64>,
    tolerance: Option<String>,
    pass: bool,
    message: Option<String>,
}

pub fn run(args: &args::Check) -> Result<Passed> {
    let device = Device::from_name(&args.device)?;
    let stream = device.stream();
    let cases = lookup::cases(&args.kernels, args.scale.into(), args.case.as_deref())?;
    let bar = progress(cases.len());
    let mut rows = Vec::new();
    for (kernel, case) in &cases {
        bar.set_message(format!("{kernel} {}", case.name));
        rows.push(check(kernel, case, args, &stream));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_table(&rows);
    }
    Ok(rows.iter().all(|r| r.pass))
}

fn check(kernel: &'static str, case: &Case, args: &args::Check, stream: &Stream) -> Row {
    let start = Instant::now();
    let problem = (case.build)(&args.settings);
    let inputs = start.elapsed();
    let outcome = problem
        .map_err(|e| e.to_string())
        .and_then(|p| run_problem(&p, stream, args.repeats).map_err(|e| e.to_string()));
    let row = Row {
        kernel,
        case: case.name.clone(),
        device: stream.device().name(),
        compile_ms: None,
        codegen_ms: None,
        from_cache: false,
        run_ms: None,
        inputs_ms: Some(ms(inputs)),
        verify_ms: None,
        gflops: None,
        gb_per_s: None,
        output: None,
        error: None,
        tolerance: None,
        pass: false,
        message: None,
    };
    match outcome {
        Err(message) => Row { message: Some(message), ..row },
        Ok(o) => measured(row, &o),
    }
}

fn measured(row: Row, o: &Outcome) -> Row {
    let per_second =
        |amount: f64| (amount > 0.0 && o.time > Duration::ZERO).then(|| amount / o.time.as_secs_f64() / 1e9);
    let worst = o.worst();
    let failures: Vec<String> =
        o.comparisons.iter().filter(|c| !c.verdict.pass).map(|c| format!("{}: {}", c.output, c.verdict)).collect();
    Row {
        compile_ms: Some(ms(o.build.record + o.build.compile)),
        codegen_ms: Some(ms(o.build.record + o.build.compile - o.build.driver)),
        from_cache: o.build.from_cache,
        run_ms: Some(ms(o.time)),
        verify_ms: Some(ms(o.verify)),
        gflops: per_second(o.work.flops),
        gb_per_s: per_second(o.work.bytes),
        output: worst.map(|c| c.output),
        error: worst.map(|c| c.verdict.error),
        tolerance: worst.map(|c| c.verdict.tolerance.to_string()),
        pass: o.pass(),
        message: (!failures.is_empty()).then(|| failures.join("; ")),
        ..row
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn print_table(rows: &[Row]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["kernel", "case", "on", "compile ms", "run ms", "rate", "error", "tolerance", ""]);
    let number = |v: Option<f64>, digits: usize| v.map(|v| format!("{v:.digits$}")).unwrap_or_default();
    for r in rows {
        let rate = match (r.gflops, r.gb_per_s) {
            (Some(g), _) => format!("{g:.1} GFLOP/s"),
            (None, Some(b)) => format!("{b:.2} GB/s"),
            (None, None) => String::new(),
        };
        let verdict = if r.pass { Cell::new("pass").fg(Color::Green) } else { Cell::new("FAIL").fg(Color::Red) };
        table.add_row([
            Cell::new(r.kernel),
            Cell::new(&r.case),
            Cell::new(&r.device),
            Cell::new(number(r.compile_ms, 1) + if r.from_cache { " (cached)" } else { "" }),
            Cell::new(number(r.run_ms, 2)),
            Cell::new(rate),
            Cell::new(r.error.map(|e| format!("{e:.1e}")).unwrap_or_default()),
            Cell::new(r.tolerance.as_deref().unwrap_or_default()),
            verdict,
        ]);
    }
    println!("{table}");
    for r in rows {
        if let Some(message) = &r.message {
            println!("\n{} {}: {message}", r.kernel, r.case);
        }
    }
    let passed = rows.iter().filter(|r| r.pass).count();
    let compiled = rows.iter().filter(|r| !r.from_cache).filter_map(|r| Some((r.compile_ms?, r.kernel)));
    let slowest = match compiled.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((ms, kernel)) => format!("; slowest to compile: {kernel}, {ms:.1} ms"),
        None => String::new(),
    };
    println!("\n{passed} of {} passed{slowest}", rows.len());
}
