//! The largest logits of each row, for sampling.

use super::cross_entropy::take_rows;
use crate::inputs::{Inputs, output, sample_rows};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::gate::top_k;
use zellige::TuneValue;
use zellige::prelude::*;
use zellige_ir::DType;

/// Logits of a segment, and segments of a group: each is looked into only if its largest logit is among the best.
const SEGMENT: usize = 32;
const GROUP: usize = 16;

/// Tile sizes of [`sampling_topk`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
pub struct SamplingConfig {
    /// Groups of segments that are read at once.
    #[tune(8, 16, 32)]
    pub groups: usize,
    #[tune(256, 512, 1024)]
    pub threads: usize,
}

impl Default for SamplingConfig {
    fn default() -> SamplingConfig {
        SamplingConfig { groups: 32, threads: 512 }
    }
}

/// The places of the `k` largest numbers (all if there are fewer), the smaller place first on ties; in ascending order.
#[tile]
fn best_places(t: T, numbers: Shared<f32, 1>, k: usize) -> Shared<i32, 1> {
    let k = k.min(numbers.shape()[0]);
    let (best, places) = (t.fragment::<f32, 1>([k]), t.shared::<i32, 1>([k]));
    t.topk(numbers, best, places);
    t.sort(places, false);
    places
}

/// The `k` largest of the first `ends[r]` logits of each row, in descending order, with their columns; of equal logits the
/// smaller column first. Where there are fewer, or they are minus infinity, the rest has value minus infinity and column -1.
/// `logits` [rows, vocab] holds no NaN, `values` and `ids` [rows, k].
///
/// A row is one block's. It reads the row once for the largest logit of each segment of neighbours. The best `k` logits
/// are in the `k` segments whose largest are best (on ties, the first ones): only these are read again. Segments are found
/// in the same way from groups of segments.
#[kernel(static_dims(vocab, k))]
pub fn sampling_topk(
    t: T,
    #[dims(rows, vocab)] logits: &Tensor<f32, 2>,
    #[dims(rows)] ends: &Tensor<i32, 1>,
    #[dims(rows, k)] values: &mut Tensor<f32, 2>,
    #[dims(rows, k)] ids: &mut Tensor<i32, 2>,
    #[comptime] cfg: SamplingConfig,
) {
    let (at_once, k) = (cfg.groups, values.static_dim(1));
    let step = at_once * GROUP * SEGMENT;
    let groups = logits.static_dim(1).div_ceil(step) * at_once;
    let [row] = t.grid([logits.dim(0)], cfg.threads);
    let end = ends[row].to_index();
    let logit = |column: Idx| select(column < end, logits[(row, column)], f32::NEG_INFINITY);

    let segment_max = t.shared::<f32, 2>([groups, GROUP]);
    t.fill(segment_max, f32::NEG_INFINITY);
    let tile = t.fragment::<f32, 3>([at_once, GROUP, SEGMENT]);
    let largest = t.fragment::<f32, 2>([at_once, GROUP]);
    for i in t.serial(end.ceil_div(step)) {
        for (g, s, c) in t.parallel((at_once, GROUP, SEGMENT)) {
            tile[(g, s, c)] = logit(i * step + (g * GROUP + s) * SEGMENT + c);
        }
        t.reduce_max(tile, largest, 2);
        t.copy(largest, segment_max.sub((i * at_once, 0), [at_once, GROUP]));
    }

    let group_max = t.shared::<f32, 1>([groups]);
    t.reduce_max(segment_max, group_max, 1);
    let chosen = best_places(t, group_max, k);
    let count = chosen.shape()[0];
    let segments = t.shared::<f32, 1>([count * GROUP]);
    for (g, s) in t.parallel((count, GROUP)) {
        segments[g * GROUP + s] = segment_max[(chosen[g].to_index(), s)];
    }
    let places = best_places(t, segments, k);
    let count = places.shape()[0];
    let (pool, columns) = (t.shared::<f32, 1>([count * SEGMENT]), t.shared::<i32, 1>([count * SEGMENT]));
    for (s, c) in t.parallel((count, SEGMENT)) {
        let place = places[s].to_index();
        let column = (chosen[place / GROUP].to_index() * GROUP + place % GROUP) * SEGMENT + c;
        pool[s * SEGMENT + c] = logit(column);
        columns[s * SEGMENT + c] = column.cast();
    }
    let (best, at) = (t.fragment::<f32, 1>([k]), t.shared::<i32, 1>([k]));
    t.topk(pool, best, at);
    for j in t.parallel(k) {
        values[(row, j)] = best[j];
        ids[(row, j)] = select(best[j] > f32::NEG_INFINITY, columns[at[j].to_index()], -1);
    }
}

/// The library's entry.
pub struct Entry;

/// Rows of a large problem that are compared.
const SAMPLED_ROWS: usize = 32;

fn problem(rows: usize, vocab: usize, k: usize, cfg: SamplingConfig) -> Result<Problem, ProblemError> {
    let mut inputs = Inputs::new(24);
    let mut logits = inputs.draw(rows * vocab, |rng| 3.0 * crate::inputs::normal(rng) as f32);
    for (r, row) in logits.chunks_mut(vocab.max(1)).enumerate() {
        match r % 4 {
            // Ties.
            1 => row.iter_mut().for_each(|x| *x = x.round()),
            2 => row.iter_mut().skip(3).for_each(|x| *x = f32::NEG_INFINITY),
            _ => {}
        }
    }
    let end = move |r: usize| match r % 5 {
        3 => vocab / 3,
        4 => 0,
        _ => vocab,
    };
    let ends: Vec<i32> = (0..rows).map(|r| end(r) as i32).collect();
    let args = vec![
        Value::Tensor(DynTensor::from_slice::<f32>(&[rows, vocab], &logits)?),
        Value::Tensor(DynTensor::from_slice::<i32>(&[rows], &ends)?),
        Value::Tensor(output(DType::F32, &[rows, k])?),
        Value::Tensor(output(DType::I32, &[rows, k])?),
    ];
    let work = Work::of(&args);
    let verify = move |args: &[Value]| {
        let sampled = sample_rows(rows, SAMPLED_ROWS);
        let (mut values, mut ids) = (Vec::new(), Vec::new());
        for &r in &sampled {
            let mut row = logits[r * vocab..(r + 1) * vocab].to_vec();
            row[end(r)..].fill(f32::NEG_INFINITY);
            for id in top_k(&row, 1, vocab, k) {
                let value = row[id as usize];
                values.push(value);
                ids.push(if value == f32::NEG_INFINITY { -1.0 } else { id as f32 });
            }
        }
        let got = |i: usize| take_rows(&args[i].f32s(), &sampled, k);
        vec![
            Comparison::exact_f32("values", &got(2), &values),
            // Columns are below 2^24: exact as f32.
            Comparison::exact_f32("ids", &got(3), &ids),
        ]
    };
    Ok(Problem { kernel: Box::new(SamplingTopk::new(cfg)), args, work, verify: Box::new(verify) })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "sampling_topk",
            family: Family::Vocab,
            summary: "the k largest logits of each row with their columns, smaller column first on ties",
            equation: "ids[r] = argtopk_c(z[r,c], c < ends[r]), values[r,j] = z[r,ids[r,j]]; -1 and -inf where there are fewer",
            tolerance: "exact",
            source: "V4 specification 7, appendix a 58; DeepSelect (fp32 mode)",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(SamplingConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], _dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        Ok(Box::new(SamplingTopk::new(apply(SamplingConfig::default(), settings)?)))
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        let case = |rows: usize, vocab: usize, k: usize, cfg: SamplingConfig| {
            Case::new(format!("rows={rows} vocab={vocab} k={k}"), cfg, move |cfg| problem(rows, vocab, k, cfg))
        };
        let cfg = SamplingConfig::default();
        match scale {
            Scale::Small => {
                let small = SamplingConfig { groups: 1, threads: 64 };
                vec![
                    case(0, 100, 4, small),
                    case(1, 5, 5, small),
                    case(9, 200, 8, small),
                    case(6, 700, 1, small),
                    case(7, 2500, 3, small),
                    case(3, 1500, 50, cfg),
                ]
            }
            Scale::Representative => vec![case(64, 129_280, 32, cfg)],
            Scale::Full => vec![case(256, 129_280, 64, cfg), case(1, 129_280, 20, cfg)],
        }
    }
}
