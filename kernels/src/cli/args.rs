//! What the user can type.

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use zellige::TuneValue;
use zellige_ir::DType;

/// DeepSeek-V4 kernels, compiled for this machine and checked against their references.
///
/// Without a command, checks one V4-sized problem of every kernel.
#[derive(Parser, Debug)]
#[command(name = "zellige", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// List the kernels.
    List(List),
    /// Compile kernels, run them on problems with known answers, and compare.
    Check(Check),
    /// Time kernels on V4-sized problems, without comparing anything.
    Bench(Bench),
    /// Show a kernel's arguments, dims and config space.
    Describe(Describe),
    /// Run a kernel on tensors of your own.
    Run(Run),
    /// Show a stage of a kernel's compilation, or the decisions on the way to it.
    Emit(Emit),
    /// Draw how a tile of a kernel lies in registers or shared memory, as an SVG picture.
    Layout(Layout),
    /// Look at, check or empty the store of compiled kernels.
    Cache(Cache),
}

#[derive(clap::Args, Debug)]
pub struct List {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Print the library page: every kernel with its arguments and config, in Markdown.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

#[derive(clap::Args, Debug)]
pub struct Check {
    /// Kernels to check; all of them if none is named.
    pub kernels: Vec<String>,
    /// Where to run: cpu, interp, sim, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Which problems: small edge cases, one of V4 size, or all of V4 size.
    #[arg(long, value_enum, default_value_t)]
    pub scale: ScaleArg,
    /// Only problems whose name contains this.
    #[arg(long)]
    pub case: Option<String>,
    /// Config field to change, as `name=value`.
    #[arg(long = "set", value_parser = setting)]
    pub settings: Vec<(String, TuneValue)>,
    /// Timed launches after the first; the fastest counts.
    #[arg(long, default_value_t = 2)]
    pub repeats: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

impl Default for Check {
    /// What `zellige check` alone means.
    fn default() -> Check {
        let matches = Check::augment_args(clap::Command::new("check")).get_matches_from(["check"]);
        Check::from_arg_matches(&matches).expect("every argument has a default")
    }
}

#[derive(clap::Args, Debug)]
pub struct Bench {
    /// Kernels to time; all of them if none is named.
    pub kernels: Vec<String>,
    /// Where to run: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Which problems: small edge cases, one of V4 size, or all of V4 size.
    #[arg(long, value_enum, default_value_t)]
    pub scale: ScaleArg,
    /// Only problems whose name contains this.
    #[arg(long)]
    pub case: Option<String>,
    /// Config field to change, as `name=value`.
    #[arg(long = "set", value_parser = setting)]
    pub settings: Vec<(String, TuneValue)>,
    /// Timed launches after the warm-up.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Seconds after which a problem is given up, its inputs and its compilation included.
    #[arg(long, default_value_t = 60.0)]
    pub limit_s: f64,
    /// Keep the results in this JSON file, rewritten after every problem.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A [`Scale`](crate::library::Scale) on the command line.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleArg {
    Small,
    #[default]
    Representative,
    Full,
}

impl From<ScaleArg> for crate::library::Scale {
    fn from(s: ScaleArg) -> Self {
        match s {
            ScaleArg::Small => Self::Small,
            ScaleArg::Representative => Self::Representative,
            ScaleArg::Full => Self::Full,
        }
    }
}

#[derive(clap::Args, Debug)]
pub struct Describe {
    pub kernel: String,
    /// Also compile its representative problem for this device, and show what the kernel takes of a GPU.
    #[arg(long)]
    pub device: Option<String>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Run {
    pub kernel: String,
    /// Tensors by parameter name (.safetensors), or one tensor (.npy) for a kernel with one input.
    #[arg(long = "in", value_name = "FILE")]
    pub input: PathBuf,
    /// Where the written tensors go (.safetensors).
    #[arg(long = "out", value_name = "FILE")]
    pub output: PathBuf,
    /// Scalar argument, config field, or extent of a dim that no input has, as `name=value`.
    #[arg(long = "set", value_parser = text_setting)]
    pub settings: Vec<(String, String)>,
    /// Where to run: cpu, interp, sim, cuda or cuda:N.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Emit {
    pub kernel: String,
    /// tile, loop, clif and asm on the way to this CPU; simt and ptx on the way to a GPU.
    #[arg(long)]
    pub stage: Option<String>,
    /// What simt and ptx are for: sm_80, sm_89 or sm_90a.
    #[arg(long)]
    pub target: Option<String>,
    /// Instead of code, show the decisions on the way to a GPU: layouts, pipelines, shared memory, and every barrier with its
    /// reason.
    #[arg(long)]
    pub explain: bool,
    /// For launches in which rows are a multiple of 16 elements long, as most are: with the widest accesses.
    #[arg(long)]
    pub aligned: bool,
    /// Use the sizes and options of the problem whose name contains this.
    #[arg(long)]
    pub case: Option<String>,
    /// Instead of a problem's sizes, the extent of a dim, as `name=extent`; the config is what suits these extents, and rows are
    /// as aligned as those of contiguous tensors.
    #[arg(long = "dim", value_parser = extent, conflicts_with = "case")]
    pub dims: Vec<(String, usize)>,
    /// With `--dim`, the element type of an argument, as `name=type`, for kernels that take several.
    #[arg(long = "dtype", value_parser = dtype, requires = "dims")]
    pub dtypes: Vec<(String, DType)>,
    /// Config field to change, as `name=value`.
    #[arg(long = "set", value_parser = setting)]
    pub settings: Vec<(String, TuneValue)>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Layout {
    pub kernel: String,
    /// The tile: its number in the tile IR (`0` for `$0`), or its name. Without it, the tiles are listed.
    pub buffer: Option<String>,
    /// Where the picture goes; standard output if not given.
    #[arg(long = "out", short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// sm_80, sm_89 or sm_90a.
    #[arg(long)]
    pub target: Option<String>,
    /// Use the sizes and options of the problem whose name contains this.
    #[arg(long)]
    pub case: Option<String>,
    /// Config field to change, as `name=value`.
    #[arg(long = "set", value_parser = setting)]
    pub settings: Vec<(String, TuneValue)>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Cache {
    /// ls (the default): what is there; verify: read and check every entry; clear: delete all of them.
    #[arg(default_value = "ls")]
    pub action: String,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

fn text_setting(s: &str) -> Result<(String, String), String> {
    s.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).ok_or_else(|| format!("`{s}` is not `name=value`"))
}

fn setting(s: &str) -> Result<(String, TuneValue), String> {
    let (name, value) = text_setting(s)?;
    value.parse().map(|v| (name, v)).map_err(|e: zellige::TuneError| e.to_string())
}

fn extent(s: &str) -> Result<(String, usize), String> {
    let (name, value) = text_setting(s)?;
    value.parse().map(|v| (name, v)).map_err(|_| format!("`{value}` is no extent"))
}

fn dtype(s: &str) -> Result<(String, DType), String> {
    let (name, value) = text_setting(s)?;
    DType::from_name(&value).map(|v| (name, v)).ok_or_else(|| format!("`{value}` is no element type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_is_check_with_its_defaults() {
        let check = Check::default();
        assert_eq!((check.device.as_str(), check.scale, check.repeats), ("cpu", ScaleArg::Representative, 2));
        assert!(check.kernels.is_empty() && check.settings.is_empty() && check.case.is_none() && !check.json);
    }
}
