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
    for (stage, word) in [("tile", "gemm"), ("loop", "loop"), ("clif", "function"), ("asm", "ret")] {
        let o = zellige(&["emit", "gemm", "--case", "m=1 ", "--stage", stage]);
        assert!(o.status.success() && stdout(&o).contains(word), "{stage}: {}", stdout(&o));
    }
}

#[test]
fn mistakes_are_one_line_with_the_way_out() {
    fails(&["describe", "gmem"], "zellige: no kernel `gmem`: did you mean `gemm`?; `zellige list` shows them all");
    fails(
        &["check", "gemm", "--device", "tpu"],
        "zellige: no device `tpu`: the devices are: cpu, interp, sim, cuda, cuda:N",
    );
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
