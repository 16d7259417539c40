//! The command line as a user types it: what it prints, and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use zellige::runtime::io::{TensorFile, save_npy};
use zellige::runtime::{DeviceTensor, DynTensor};

fn zellige(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zellige")).args(args).output().expect("the binary runs")
}

fn stdout(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

/// The command fails with exactly this line.
#[track_caller]
fn fails(args: &[&str], message: &str) {
    let o = zellige(args);
    assert_eq!(String::from_utf8_lossy(&o.stderr).trim_end(), message);
    assert_eq!(o.status.code(), Some(2), "{}", stdout(&o));
}

fn file(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().expect("a UTF-8 path").to_owned()
}

fn gemm_inputs(path: &Path) {
    let a = DeviceTensor::<f32, 2>::from_slice([2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let b = DeviceTensor::<f32, 2>::from_slice([2, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).unwrap();
    let tensors = [("a".to_owned(), DynTensor::from(a)), ("b".to_owned(), DynTensor::from(b))].into();
    TensorFile { tensors, ..TensorFile::default() }.save(path).unwrap();
}

#[test]
fn list_and_describe_name_every_kernel() {
    let list = stdout(&zellige(&["list", "--json"]));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    assert_eq!(rows.len(), zellige_kernels::library::all().len());
    for row in &rows {
        let o = zellige(&["describe", row["kernel"].as_str().unwrap(), "--json"]);
        assert!(o.status.success());
        let d: serde_json::Value = serde_json::from_str(&stdout(&o)).unwrap();
        assert_eq!(d["kernel"], row["kernel"]);
        assert!(!d["arguments"].as_array().unwrap().is_empty());
        assert!(!d["doc"].as_str().unwrap().is_empty(), "{row}");
    }
}

#[test]
fn check_reports_and_exits_zero_on_success() {
    let o = zellige(&["check", "gemm", "--scale", "small", "--case", "m=1 ", "--json"]);
    assert!(o.status.success(), "{}", stdout(&o));
    let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout(&o)).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["pass"], true);
    assert!(rows[0]["compile_ms"].as_f64().unwrap() >= 0.0);
}

#[test]
fn run_computes_on_the_users_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (file(&dir, "x.safetensors"), file(&dir, "y.safetensors"));
    gemm_inputs(input.as_ref());
    let o =
        zellige(&["run", "gemm", "--in", &input, "--out", &output, "--set", "alpha=2", "--set", "m=2", "--set", "n=2"]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let c = &TensorFile::load(&output).unwrap().tensors["c"];
    assert_eq!(c.to_f64_vec().unwrap(), [2.0, 4.0, 8.0, 10.0]);
}

#[test]
fn every_stage_can_be_shown() {
    let stages = [
        ("tile", "gemm"),
        ("loop", "loop"),
        ("clif", "function"),
        ("asm", "ret"),
        ("simt", "simt kernel"),
        ("ptx", ".visible .entry"),
    ];
    for (stage, word) in stages {
        let o = zellige(&["emit", "gemm", "--case", "m=1 ", "--stage", stage]);
        assert!(o.status.success() && stdout(&o).contains(word), "{stage}: {}", stdout(&o));
    }
}

#[test]
fn code_for_gpus_is_for_the_target_that_was_named() {
    for target in ["sm_80", "sm_89", "sm_90a"] {
        let o = zellige(&["emit", "gemm", "--case", "m=1 ", "--stage", "ptx", "--target", target, "--json"]);
        let v: serde_json::Value = serde_json::from_str(&stdout(&o)).unwrap();
        assert!(v["text"].as_str().unwrap().contains(&format!(".target {target}")), "{v}");
        assert!(v["target"].as_str().unwrap().starts_with(target) && v["threads"].as_u64().unwrap() > 0);
        assert!(!v["explain"].as_array().unwrap().is_empty());
    }
}

#[test]
fn extents_of_ones_own_choose_the_config() {
    let emit = |more: &[&str]| -> serde_json::Value {
        let o = zellige(&[&["emit", "gemm", "--stage", "ptx", "--json"], more].concat());
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        serde_json::from_str(&stdout(&o)).unwrap()
    };
    let weight = ["--dim", "b0=512", "--dim", "b1=7168"];
    let few = emit(&[&weight[..], &["--dim", "m=64"]].concat());
    let many = emit(&[&weight[..], &["--dim", "m=4096"]].concat());
    assert_eq!(few["config"]["runs"], many["config"]["runs"]);
    assert!(few["config"]["spread"] == true && many["config"]["spread"] == false, "{few} {many}");
    assert!(few.get("blocks").is_none(), "the extents of a and c are not known");
    let rest = ["--dim", "m=64", "--dim", "n=512", "--dim", "a0=64", "--dim", "a1=7168", "--set", "bn=32"];
    assert_eq!(emit(&[&weight[..], &rest].concat())["blocks"], serde_json::json!([16, 1]));
    fails(&["emit", "gemm", "--dim", "zz=3"], "zellige: `gemm` has no dim `zz`; the dims are: a0, a1, b0, b1, m, n");
    fails(
        &["emit", "flash_attention", "--set", "causal=1"],
        "zellige: config field `causal` cannot be 1: it is true or false",
    );
    fails(
        &["emit", "gemm", "--dim", "m=64", "--set", "bm=256", "--set", "bn=256"],
        "zellige: the config violates `bm * bn <= 128 * 256`",
    );
}

#[test]
fn decisions_are_explained_with_the_authors_places() {
    let everywhere = ["  acc has ", "\nlayout\n", "\nshared\n", "kernels/src/gemm/dense.rs:"];
    for (target, parts) in
        [("sm_80", ["\nbarrier\n", "\npipeline\n"]), ("sm_90a", ["\nhopper\n", " registers a thread"])]
    {
        let o = zellige(&["emit", "gemm", "--explain", "--target", target]);
        assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
        let text = stdout(&o);
        assert!(text.lines().next().is_some_and(|l| l.contains(&format!(" for {target} "))), "{text}");
        for part in everywhere.iter().chain(&parts) {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
}

#[test]
fn layouts_are_listed_and_drawn() {
    let list = stdout(&zellige(&["layout", "gemm", "--json"]));
    let tiles: Vec<serde_json::Value> = serde_json::from_str(&list).unwrap();
    assert!(tiles.iter().any(|t| t["scope"] == "fragment") && tiles.iter().any(|t| t["scope"] == "shared"));
    let dir = tempfile::tempdir().unwrap();
    for tile in &tiles {
        let (name, path) = (tile["buffer"].as_str().unwrap(), file(&dir, "tile.svg"));
        let o = zellige(&["layout", "gemm", name, "--out", &path]);
        assert!(o.status.success() && o.stdout.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains(&format!("gemm, {name} ($")) && svg.contains("dense.rs:"));
    }
    fails(
        &["layout", "gemm", "c"],
        "zellige: `c` is a parameter of `gemm`: its layout is the caller's; `zellige layout gemm` shows the tiles",
    );
    assert_eq!(zellige(&["layout", "gemm", "0"]).stdout, zellige(&["layout", "gemm", "a_s"]).stdout);
    fails(
        &["layout", "gemm", "acd"],
        "zellige: no tile `acd` in `gemm`: did you mean `acc`?; `zellige layout gemm` shows them all",
    );
}

#[test]
fn bench_times_without_comparing() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "bench.json");
    let only = ["bench", "rope", "--scale", "small", "--case", "tokens=5 "];
    let o = zellige(&[&only[..], &["--repeats", "3", "--json", "--save", &path]].concat());
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let report: serde_json::Value = serde_json::from_str(&stdout(&o)).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(&path).unwrap()).unwrap(), report);
    assert!(report["copy_gb_per_s"].as_f64().unwrap() > 0.0);
    let row = &report["rows"][0];
    assert_eq!((row["kernel"].as_str(), row["launches"].as_u64()), (Some("rope"), Some(3)));
    for fact in ["time_us", "bytes", "gb_per_s", "of_copy"] {
        assert!(row[fact].as_f64().unwrap() > 0.0, "{fact}: {row}");
    }
    // A problem that takes seconds, however late this process looks at the clock.
    let o = zellige(&["bench", "attention_dkv", "--limit-s", "1e-6"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(stdout(&o).contains(": given up after 0.000001 s, "), "{}", stdout(&o));
    fails(&["bench", "rope", "--limit-s", "0"], "zellige: --limit-s 0 is no time: give seconds");
}

#[test]
fn the_cache_is_shown_checked_and_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let cached = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zellige"));
        command.args(args).env("ZELLIGE_CACHE_DIR", dir.path()).output().expect("the binary runs")
    };
    let ls = || serde_json::from_str::<serde_json::Value>(&stdout(&cached(&["cache", "--json"]))).unwrap();
    let check = || {
        let o = cached(&["check", "gemm", "--scale", "small", "--case", "m=1 ", "--device", "sim", "--json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&stdout(&o)).unwrap();
        assert_eq!(rows[0]["pass"], true);
        (rows[0]["from_cache"].as_bool().unwrap(), String::from_utf8_lossy(&o.stderr).into_owned())
    };
    assert_eq!(ls()["entries"].as_array().unwrap().len(), 0);
    assert_eq!(check(), (false, String::new()));
    assert_eq!(check(), (true, String::new()));
    let listed = ls();
    assert_eq!(listed["entries"][0]["kind"], "ptx");
    assert_eq!(listed["entries"][0]["metadata"]["kernel"], "dense_gemm");
    assert!(cached(&["cache", "verify"]).status.success());
    // A kernel may have variants for tensors that are aligned and tensors that are not: all of them are damaged.
    let entries: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    for entry in &entries {
        let whole = std::fs::read(entry).unwrap();
        std::fs::write(entry, &whole[..whole.len() / 2]).unwrap();
    }
    let o = cached(&["cache", "verify"]);
    assert_eq!(o.status.code(), Some(1));
    assert!(stdout(&o).contains(&format!("0 good entries, {} bad", entries.len())), "{}", stdout(&o));
    let (from_cache, warning) = check();
    assert!(!from_cache && warning.trim_end().ends_with("the kernel is compiled anew"), "{warning}");
    assert_eq!(check(), (true, String::new()));
    assert!(stdout(&cached(&["cache", "clear"])).contains(&format!(": removed {} entries, ", entries.len())));
    assert_eq!(ls()["entries"].as_array().unwrap().len(), 0);
}

#[test]
fn mistakes_are_one_line_with_the_way_out() {
    fails(&["describe", "gmem"], "zellige: no kernel `gmem`: did you mean `gemm`?; `zellige list` shows them all");
    fails(
        &["check", "gemm", "--device", "tpu"],
        "zellige: no device `tpu`: the devices are: cpu, interp, sim, cuda, cuda:N",
    );
    fails(
        &["emit", "gemm", "--stage", "ptxx"],
        "zellige: no stage `ptxx`: did you mean `ptx`?; the stages are: tile, loop, clif, asm, simt, ptx",
    );
    fails(
        &["emit", "gemm", "--stage", "ptx", "--target", "sm_90"],
        "zellige: no target `sm_90`: did you mean `sm_90a`?; the targets are: sm_80, sm_89, sm_90a",
    );
    fails(
        &["emit", "gemm", "--stage", "loop", "--explain"],
        "zellige: --explain tells of the way to a GPU, stage `loop` is not on it: use --stage simt or ptx",
    );
    fails(
        &["emit", "gemm", "--target", "sm_80"],
        "zellige: stage `tile` is not for a GPU: --target belongs to --stage simt or ptx",
    );
    fails(
        &["cache", "verfy"],
        "zellige: no action `verfy`: did you mean `verify`?; the actions are: ls, verify, clear",
    );
    fails(&["bench", "ropes"], "zellige: no kernel `ropes`: did you mean `rope`?; `zellige list` shows them all");
    fails(&["describe", "gemm", "--device", "interp"], "zellige: interp does not count what a kernel takes of it");
    fails(&["check", "gemm", "--case", "nowhere"], "zellige: no problem's name contains `nowhere`");
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (file(&dir, "x.safetensors"), file(&dir, "y.safetensors"));
    let run = |extra: &[&'static str]| {
        let mut args = vec!["run", "gemm", "--in", &input, "--out", &output];
        args.extend(extra);
        let o = zellige(&args);
        assert_eq!(o.status.code(), Some(2));
        assert!(!PathBuf::from(&output).exists(), "nothing is written on an error");
        String::from_utf8_lossy(&o.stderr).trim_end().replace(dir.path().to_str().unwrap(), "DIR")
    };
    assert!(run(&[]).starts_with("zellige: DIR/x.safetensors: "), "{}", run(&[]));
    gemm_inputs(input.as_ref());
    assert_eq!(run(&[]), "zellige: scalar `alpha` (f32) is not given: add `--set alpha=value`");
    assert_eq!(
        run(&["--set", "alpha=1", "--set", "m=2"]),
        "zellige: no input has dim `n` of output `c` (f32[m, n]): add `--set n=extent`"
    );
    assert_eq!(
        run(&["--set", "alpha=1", "--set", "alhpa=2"]),
        "zellige: `alhpa` is neither a scalar, a config field nor a dim of `gemm`: did you mean `alpha`?"
    );
    assert_eq!(run(&["--set", "bm=three"]), "zellige: `three` is neither an integer nor true or false");
    assert_eq!(
        run(&["--set", "alpha=1", "--set", "bm=256", "--set", "bn=256"]),
        "zellige: the config violates `bm * bn <= 128 * 256`"
    );
    let whole = std::fs::read(&input).unwrap();
    std::fs::write(&input, &whole[..60]).unwrap();
    let message = run(&["--set", "alpha=1"]);
    assert!(message.starts_with("zellige: DIR/x.safetensors: file ends after 60 bytes"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn an_npy_file_is_the_only_input_of_a_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (file(&dir, "x.npy"), file(&dir, "y.safetensors"));
    save_npy(&input, DeviceTensor::<f32, 2>::zeros([2, 3]).unwrap().as_dyn()).unwrap();
    fails(
        &["run", "gemm", "--in", &input, "--out", &output, "--set", "alpha=1"],
        "zellige: kernel `dense_gemm` has 2 inputs (a, b): give them in a .safetensors file",
    );
}
