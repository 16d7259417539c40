//! `zellige bench`: how fast kernels are, beside what the device can do at best.
//!
//! Only inputs are built and only the kernel runs: the reference is never computed. A problem is measured on a thread of its
//! own, so that one that takes too long (its inputs, its compilation or its launches) costs the others nothing but that time.

use super::{Passed, args, lookup, progress};
use crate::library::{Case, Work};
use crate::run::arguments;
use anyhow::{Context, Result, bail};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};
use zellige::TuneValue;
use zellige::runtime::{BuildTimes, Device, Resources, Stream};

/// Launches before the measurement, and the time after which there have been enough of them.
const WARM_UP: usize = 5;
const WARM_UP_TIME: Duration = Duration::from_millis(200);

/// Everything that was measured in a run.
#[derive(Serialize)]
struct Report {
    device: String,
    /// Bytes read and written by a large copy, in 1e9 a second, measured in this run: the ceiling of memory-bound kernels.
    copy_gb_per_s: Option<f64>,
    rows: Vec<Row>,
}

/// One problem's result.
#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    case: String,
    /// The median launch; the fastest one on a device whose time others take too.
    time_us: Option<f64>,
    fastest_us: Option<f64>,
    /// Nine of ten launches were faster than this.
    p90_us: Option<f64>,
    launches: usize,
    /// Bytes that must be moved, every input once and every output once.
    bytes: f64,
    flops: f64,
    gb_per_s: Option<f64>,
    tflop_per_s: Option<f64>,
    /// `gb_per_s` as a fraction of the copy's, for a kernel that memory bounds.
    of_copy: Option<f64>,
    /// The time of a copy that moves as many bytes, timed alike, as a fraction of `time_us`: that ceiling has the start of a
    /// launch and the cold cache in it, too.
    of_equal_copy: Option<f64>,
    resources: Option<Resources>,
    inputs_s: Option<f64>,
    compile_ms: Option<f64>,
    /// Of that, from the kernel's Rust body to machine code or PTX; the rest is the driver's own compiler.
    codegen_ms: Option<f64>,
    from_cache: bool,
    /// Why there is no time.
    message: Option<String>,
}

pub fn run(args: args::Bench) -> Result<Passed> {
    if !(args.limit_s.is_finite() && args.limit_s > 0.0) {
        bail!("--limit-s {} is no time: give seconds", args.limit_s);
    }
    let device = Device::from_name(&args.device)?;
    let cases = lookup::cases(&args.kernels, args.scale.into(), args.case.as_deref())?;
    let copy = device.copy_rate()?;
    let mut report = Report { device: device.name(), copy_gb_per_s: copy.map(|c| c / 1e9), rows: Vec::new() };
    let bar = progress(cases.len());
    for (kernel, case) in cases {
        bar.set_message(format!("{kernel} {}", case.name));
        report.rows.push(bench(kernel, case, &args, &device, copy));
        if let Some(path) = &args.save {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_table(&report);
    }
    Ok(report.rows.iter().all(|r| r.message.is_none()))
}

/// What a problem's thread finds out.
struct Measured {
    work: Work,
    inputs: Duration,
    build: BuildTimes,
    /// Sorted.
    times: Vec<Duration>,
}

/// What the measuring thread is at, for the message when its time is up.
type Stage = Mutex<&'static str>;

fn bench(kernel: &'static str, case: Case, args: &args::Bench, device: &Device, copy: Option<f64>) -> Row {
    let name = case.name.clone();
    let limit = Duration::from_secs_f64(args.limit_s);
    let deadline = Instant::now() + limit;
    let stage = Arc::new(Stage::new("building its inputs"));
    let (sender, receiver) = mpsc::channel();
    {
        let (stage, stream) = (Arc::clone(&stage), device.stream());
        let (settings, repeats) = (args.settings.clone(), args.repeats as usize);
        // Nobody waits for a thread that is late: it ends with the process.
        std::thread::spawn(move || {
            let result = measure(&case, &settings, &stream, repeats, deadline, &stage);
            // The receiver is gone if this comes too late.
            let _ = sender.send(result);
        });
    }
    let result = receiver.recv_timeout(limit).unwrap_or_else(|e| {
        let at = *stage.lock().unwrap_or_else(PoisonError::into_inner);
        Err(match e {
            mpsc::RecvTimeoutError::Timeout => format!("given up after {} s, {at}", args.limit_s),
            mpsc::RecvTimeoutError::Disconnected => format!("panicked, {at}"),
        })
    });
    let row = Row {
        kernel,
        case: name,
        time_us: None,
        fastest_us: None,
        p90_us: None,
        launches: 0,
        bytes: 0.0,
        flops: 0.0,
        gb_per_s: None,
        tflop_per_s: None,
        of_copy: None,
        of_equal_copy: None,
        resources: None,
        inputs_s: None,
        compile_ms: None,
        codegen_ms: None,
        from_cache: false,
        message: None,
    };
    match result {
        Err(message) => Row { message: Some(message), ..row },
        Ok(m) => {
            let bound_by_memory = copy.is_some() && m.work.is_bound_by_memory();
            // Without it the row has everything else.
            let equal = bound_by_memory.then(|| device.copy_time(m.work.bytes as usize).ok().flatten()).flatten();
            measured(row, &m, device.is_shared(), copy, equal)
        }
    }
}

fn measured(row: Row, m: &Measured, shared: bool, copy: Option<f64>, equal: Option<Duration>) -> Row {
    let at = |part: f64| m.times[((m.times.len() - 1) as f64 * part).round() as usize];
    let us = |d: Duration| d.as_secs_f64() * 1e6;
    let time = if shared { at(0.0) } else { at(0.5) };
    let rate = |amount: f64| (amount > 0.0 && !time.is_zero()).then(|| amount / time.as_secs_f64());
    let bytes = rate(m.work.bytes);
    Row {
        time_us: Some(us(time)),
        fastest_us: Some(us(at(0.0))),
        p90_us: Some(us(at(0.9))),
        launches: m.times.len(),
        bytes: m.work.bytes,
        flops: m.work.flops,
        gb_per_s: bytes.map(|b| b / 1e9),
        tflop_per_s: rate(m.work.flops).map(|f| f / 1e12),
        of_copy: bytes.zip(copy).filter(|_| m.work.is_bound_by_memory()).map(|(b, c)| b / c),
        of_equal_copy: equal.filter(|_| !time.is_zero()).map(|e| e.as_secs_f64() / time.as_secs_f64()),
        resources: m.build.resources,
        inputs_s: Some(m.inputs.as_secs_f64()),
        compile_ms: Some((m.build.record + m.build.compile).as_secs_f64() * 1e3),
        codegen_ms: Some((m.build.record + m.build.compile - m.build.driver).as_secs_f64() * 1e3),
        from_cache: m.build.from_cache,
        ..row
    }
}

fn measure(
    case: &Case,
    settings: &[(String, TuneValue)],
    stream: &Stream,
    repeats: usize,
    deadline: Instant,
    stage: &Stage,
) -> Result<Measured, String> {
    let at = |what| *stage.lock().unwrap_or_else(PoisonError::into_inner) = what;
    let start = Instant::now();
    let problem = (case.build)(settings).map_err(|e| e.to_string())?;
    let inputs = start.elapsed();
    at("compiling");
    let args = arguments(&problem);
    let build = problem.kernel.prepare(stream.device(), &args).map_err(|e| e.to_string())?;
    at("moving its inputs to the device");
    let mut bound = problem.kernel.bind_args(stream, &args).map_err(|e| e.to_string())?;
    at("launching");
    let warm_up = Instant::now();
    let mut launches = 0;
    while launches == 0 || (launches < WARM_UP && warm_up.elapsed() < WARM_UP_TIME) {
        bound.time(1).map_err(|e| e.to_string())?;
        launches += 1;
    }
    // What a launch takes with all that is around it; half of what is left of the limit is used at most.
    let each = warm_up.elapsed().as_secs_f64() / launches as f64;
    let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64() / 2.0;
    let count = repeats.min((left / each.max(1e-9)) as usize).max(1);
    let mut times = bound.time(count).map_err(|e| e.to_string())?;
    times.sort_unstable();
    Ok(Measured { work: problem.work, inputs, build, times })
}

fn print_table(report: &Report) {
    match report.copy_gb_per_s {
        Some(copy) => println!("{}: a large copy moves {copy:.1} GB/s, read and written\n", report.device),
        None => println!("{}\n", report.device),
    }
    let gpu = report.rows.iter().any(|r| r.resources.is_some());
    let mut header = vec!["kernel", "case", "time us", "moved MB", "GB/s", "of copy", "of equal copy", "TFLOP/s"];
    if gpu {
        header.extend(["registers", "local B", "shared B", "occupancy"]);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(&header);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let number = |v: Option<f64>, digits: usize| Cell::new(v.map(|v| format!("{v:.digits$}")).unwrap_or_default());
    let percent = |v: Option<f64>| Cell::new(v.map(|f| format!("{:.0} %", 100.0 * f)).unwrap_or_default());
    for r in report.rows.iter().filter(|r| r.message.is_none()) {
        let mut cells = vec![
            Cell::new(r.kernel),
            Cell::new(&r.case),
            number(r.time_us, 1),
            number(Some(r.bytes / 1e6), 1),
            number(r.gb_per_s, 1),
            percent(r.of_copy),
            percent(r.of_equal_copy),
            number(r.tflop_per_s, 2),
        ];
        if let Some(u) = &r.resources {
            cells.extend([u.registers, u.local_bytes, u.shared_bytes].map(Cell::new));
            cells.push(Cell::new(format!("{:.0} %", 100.0 * u.occupancy)));
        }
        table.add_row(cells);
    }
    println!("{table}");
    for r in &report.rows {
        if let Some(message) = &r.message {
            println!("\n{} {}: {message}", r.kernel, r.case);
        }
    }
}
