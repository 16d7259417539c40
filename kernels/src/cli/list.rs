//! `zellige list`.

use super::{Passed, args, page};
use crate::library::{Scale, all};
use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    family: &'static str,
    summary: &'static str,
    cases: usize,
}

pub fn run(args: &args::List) -> Result<Passed> {
    if args.markdown {
        print!("{}", page::markdown()?);
        return Ok(true);
    }
    let mut rows: Vec<Row> = all()
        .iter()
        .map(|k| {
            let info = k.info();
            let cases = [Scale::Small, Scale::Full].into_iter().map(|s| k.cases(s).len()).sum();
            Row { kernel: info.name, family: info.family.name(), summary: info.summary, cases }
        })
        .collect();
    rows.sort_by_key(|r| (r.family, r.kernel));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(true);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["kernel", "family", "cases", "summary"]);
    for r in &rows {
        table.add_row([r.kernel, r.family, &r.cases.to_string(), r.summary]);
    }
    println!("{table}");
    Ok(true)
}
