//! `zellige cache`: the store of compiled kernels.

use super::{Passed, args, lookup};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::time::SystemTime;
use zellige::runtime::cache::{CacheWarning, DiskStore, EntryInfo, VerifyReport, default_dir};

const ACTIONS: [&str; 3] = ["ls", "verify", "clear"];

pub fn run(args: &args::Cache) -> Result<Passed> {
    let dir = default_dir().ok_or(CacheWarning::NoDirectory)?;
    match args.action.as_str() {
        "ls" => ls(&DiskStore::open(dir)?, args.json),
        "verify" => verify(&DiskStore::open(dir)?, args.json),
        "clear" => clear(&DiskStore::open(dir)?, args.json),
        other => {
            let nearest = lookup::nearest(other, ACTIONS.into_iter());
            bail!("no action `{other}`{nearest}; the actions are: {}", ACTIONS.join(", "))
        }
    }
}

fn read(store: &DiskStore) -> Result<VerifyReport> {
    store.verify().with_context(|| format!("{} cannot be read", store.dir().display()))
}

fn total(report: &VerifyReport) -> u64 {
    report.entries.iter().map(|e| e.bytes).sum()
}

fn ls(store: &DiskStore, json: bool) -> Result<Passed> {
    let report = read(store)?;
    if json {
        let entries: Vec<Value> = report.entries.iter().map(entry).collect();
        let value = json!({ "path": store.dir(), "entries": entries, "bytes": total(&report), "bad": bad(&report) });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(true);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["kernel", "code", "target", "bytes", "used", "key"]);
    for e in &report.entries {
        let fact = |name: &str| e.metadata.get(name).cloned().unwrap_or_default();
        // A CPU's features are a long list: its name says enough here.
        let target = fact("target").chars().take(24).collect();
        let key = e.key.to_string()[..12].to_owned();
        table.add_row([fact("kernel"), e.kind.to_string(), target, e.bytes.to_string(), age(e), key]);
    }
    if !report.entries.is_empty() {
        println!("{table}\n");
    }
    println!("{}: {} entries, {} bytes", store.dir().display(), report.entries.len(), total(&report));
    if !report.bad.is_empty() {
        println!("{} more files are no usable entries: `zellige cache verify` names them", report.bad.len());
    }
    Ok(true)
}

fn entry(e: &EntryInfo) -> Value {
    json!({
        "key": e.key.to_string(),
        "kind": e.kind.to_string(),
        "bytes": e.bytes,
        "used_s_ago": e.last_used.elapsed().map(|t| t.as_secs()).unwrap_or(0),
        "metadata": e.metadata,
    })
}

fn bad(report: &VerifyReport) -> Vec<Value> {
    report.bad.iter().map(|b| json!({ "path": b.path, "error": b.error.to_string() })).collect()
}

/// How long ago the entry was used, in its largest unit.
fn age(e: &EntryInfo) -> String {
    let seconds = SystemTime::now().duration_since(e.last_used).map(|t| t.as_secs()).unwrap_or(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

fn verify(store: &DiskStore, json: bool) -> Result<Passed> {
    let report = read(store)?;
    if json {
        let value = json!({ "path": store.dir(), "good": report.entries.len(), "bad": bad(&report) });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        for b in &report.bad {
            println!("{}: {}", b.path.display(), b.error);
        }
        let (good, bad) = (report.entries.len(), report.bad.len());
        println!("{}: {good} good entries, {bad} bad", store.dir().display());
        if bad > 0 {
            println!("bad entries are never run: each is replaced when its kernel is next compiled");
        }
    }
    Ok(report.bad.is_empty())
}

fn clear(store: &DiskStore, json: bool) -> Result<Passed> {
    let removed = store.clear().with_context(|| format!("{} cannot be emptied", store.dir().display()))?;
    if json {
        let value = json!({ "path": store.dir(), "removed": removed.files, "bytes": removed.bytes });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        println!("{}: removed {} entries, {} bytes", store.dir().display(), removed.files, removed.bytes);
    }
    Ok(true)
}
