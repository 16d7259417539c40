//! From prefix sums to the expert of each row: the two ways to say which rows of a buffer belong to which expert.

use crate::inputs::output;
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::mapping as reference;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Config of [`expert_of_rows`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct ExpertOfRowsConfig {
    /// Rows that a block writes at once.
    #[tune(128, 256, 512)]
    pub rows: usize,
    #[tune(64, 128)]
    pub threads: usize,
}

impl Default for ExpertOfRowsConfig {
    fn default() -> ExpertOfRowsConfig {
        ExpertOfRowsConfig { rows: 128, threads: 128 }
    }
}

/// `pos_to_expert[p] = e` for `starts[e] <= p < ends[e]`, and -1 for rows of no expert: the layout of
/// [`grouped_gemm`](crate::gemm::grouped::grouped_gemm) from prefix sums. `starts` ascend, `ends[e] <= starts[e + 1]`, and an expert
/// without rows has equal start and end.
///
/// Where only ends are at hand, as in DeepGEMM's prefix-sum layout, an expert starts at the first multiple of the alignment
/// from the end before it on. The rows between an end and the next start are padding, of which `grouped_gemm` makes zeros
/// with `zero_padding`.
#[kernel]
pub fn expert_of_rows(
    t: T,
    #[dims(experts)] starts: &Tensor<i32, 1>,
    #[dims(experts)] ends: &Tensor<i32, 1>,
    #[dims(positions)] pos_to_expert: &mut Tensor<i32, 1>,
    #[comptime] cfg: ExpertOfRowsConfig,
) {
    let (experts, positions) = (starts.dim(0), pos_to_expert.dim(0));
    // An expert's block writes the padding behind its rows too, the first one's also that before them.
    let [e] = t.grid([experts.max(1)], cfg.threads);
    let (start, end) = (starts[e], ends[e]);
    let from = select(e == 0, 0, start).to_index();
    let to = select(e + 1 < experts, starts[e + 1], positions.cast::<i32>()).to_index().min(positions);
    t.assert(from <= to && end.to_index() <= to, "starts and ends of experts do not ascend");
    for step in t.serial((to - from).ceil_div(cfg.rows)) {
        for i in t.parallel(cfg.rows) {
            let p = from + step * cfg.rows + i;
            if p < to {
                let row = p.cast::<i32>();
                pos_to_expert[p] = select(row >= start && row < end, e.cast::<i32>(), -1);
            }
        }
    }
}

/// The library's entry.
pub struct Entry;

/// Rows of each expert, aligned, with `spare` rows of no expert before the first and after the last.
fn case(rows: Vec<usize>, alignment: usize, spare: usize) -> Case {
    let list = format!("{rows:?}").replace(", ", ",");
    let name = if rows.len() > 8 { format!("experts={}", rows.len()) } else { format!("rows={list}") };
    let name = format!("{name} align={alignment} spare={spare}");
    Case::new(name, ExpertOfRowsConfig::default(), move |cfg| {
        let mut next = spare;
        let (starts, ends): (Vec<i32>, Vec<i32>) = rows
            .iter()
            .map(|rows| {
                let start = next;
                next += rows.next_multiple_of(alignment);
                (start as i32, (start + rows) as i32)
            })
            .unzip();
        let (experts, positions) = (rows.len(), next + spare);
        let args = vec![
            Value::Tensor(DynTensor::from_slice::<i32>(&[experts], &starts)?),
            Value::Tensor(DynTensor::from_slice::<i32>(&[experts], &ends)?),
            Value::Tensor(output(DType::I32, &[positions])?),
        ];
        let work = Work::of(&args);
        let verify = move |args: &[Value]| {
            let want = reference::expert_of_rows(&starts, &ends, positions);
            let want = DynTensor::from_slice::<i32>(&[positions], &want).expect("as large as the kernel's own");
            vec![Comparison::exact("pos_to_expert", &args[2], &want)]
        };
        Ok(Problem { kernel: Box::new(ExpertOfRows::new(cfg)), args, work, verify: Box::new(verify) })
    })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "expert_of_rows",
            family: Family::Moe,
            summary: "the expert of each row from the first row and the end of each expert",
            equation: "pos_to_expert[p] = e where starts[e] <= p < ends[e], -1 where there is none",
            tolerance: "exact",
            source: "V4 specification 3.4; DeepGEMM's prefix-sum layout of grouped products",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(ExpertOfRowsConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(ExpertOfRows::new(apply(ExpertOfRowsConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let many = |experts: usize| (0..experts).map(|e| e * 37 % 129).collect();
        match scale {
            Scale::Small => vec![
                case(vec![], 16, 0),
                case(vec![], 16, 5),
                case(vec![0, 0, 0], 16, 0),
                case(vec![0, 5, 0, 300, 1, 0], 16, 3),
                case(vec![7], 1, 0),
            ],
            Scale::Representative => vec![case(many(384), 128, 128)],
            Scale::Full => vec![case(many(256), 128, 0), case(many(384), 64, 64)],
        }
    }
}
