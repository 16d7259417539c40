//! The mapping between (token, slot) pairs and rows of an expert-sorted, padded buffer.

use super::problem::{id_type, int_tensor, random_ids};
use crate::inputs::{Inputs, output};
use crate::library::{
    Case, Comparison, Dtypes, Family, Info, LibraryKernel, Problem, ProblemError, Scale, Settings, Value, Work, apply,
};
use crate::reference::moe::mapping as reference;
use zellige::prelude::*;
use zellige::{ScanOp, TuneValue};
use zellige_ir::DType;

/// Bits of a word.
const WORD: usize = 32;

/// Config of [`get_fused_mapping`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Tune)]
#[tune(constraint = alignment > 0)]
pub struct MappingConfig {
    /// Rows of each expert are padded to a multiple of this.
    pub alignment: usize,
    /// Tokens that a block places.
    #[tune(32, 64, 128)]
    pub chunk: usize,
    /// Tokens whose ids are read at once.
    #[tune(512, 1024, 2048)]
    pub counted: usize,
    #[tune(256, 512, 1024)]
    pub threads: usize,
}

impl Default for MappingConfig {
    fn default() -> MappingConfig {
        MappingConfig { alignment: 128, chunk: 64, counted: 1024, threads: 512 }
    }
}

/// Sorts the pairs (token, slot) of `ids` [tokens, k] by expert; within an expert they stay in ascending order, so that the
/// result is a function of the ids alone. Each expert's rows ("positions") are padded to a multiple of the alignment.
///
/// For each position: its expert, token and `token * k + slot`, -1 for padding; for each pair its position, -1 where the id is
/// negative; for each expert its first position, one past its last with padding, and the difference. There must be room for
/// all positions; the surplus is padding.
///
/// One launch and no communication between blocks: every block counts all ids, and those before its own, itself.
#[kernel(static_dims(k, experts))]
pub fn get_fused_mapping<I: Int>(
    t: T,
    #[dims(tokens, k)] ids: &Tensor<I, 2>,
    #[dims(positions)] pos_to_expert: &mut Tensor<i32, 1>,
    #[dims(positions)] pos_to_token: &mut Tensor<i32, 1>,
    #[dims(positions)] pos_to_token_topk: &mut Tensor<i32, 1>,
    #[dims(tokens, k)] token_topk_to_pos: &mut Tensor<i32, 2>,
    #[dims(experts)] expert_start: &mut Tensor<i32, 1>,
    #[dims(experts)] expert_end: &mut Tensor<i32, 1>,
    #[dims(experts)] tokens_per_expert: &mut Tensor<i32, 1>,
    #[comptime] cfg: MappingConfig,
) {
    let MappingConfig { alignment, chunk, counted, .. } = cfg;
    let (tokens, k, experts) = (ids.dim(0), ids.static_dim(1), expert_start.static_dim(0));
    let blocks = tokens.ceil_div(chunk).max(1);
    let [b] = t.grid([blocks], cfg.threads);
    let first = b * chunk;

    // How many pairs of each expert earlier blocks place, and how many there are from this block's on.
    let counts = t.shared::<i32, 2>([2, experts]);
    t.clear(counts);
    for step in t.serial(tokens.ceil_div(counted)) {
        for (i, j) in t.parallel((counted, k)) {
            let token = step * counted + i;
            let id = ids[(token, j)].to_index();
            if token < tokens && id >= 0 && id < experts {
                counts.atomic_add((select(token < first, 0, 1), id), 1);
            }
        }
    }
    // Which of this block's pairs go to an expert, a bit each.
    let pairs = chunk * k;
    let words = pairs.div_ceil(WORD);
    let (chosen, id) = (t.shared::<u32, 2>([words, experts]), t.fragment::<i32, 2>([chunk, k]));
    t.clear(chosen);
    let bit = |p: Idx| lit::<u32>(1) << (p % WORD).cast::<u32>();
    for (i, j) in t.parallel((chunk, k)) {
        let (token, p) = (first + i, i * k + j);
        let found = ids[(token, j)].cast::<i32>();
        id[(i, j)] = select(token < tokens && found >= 0 && found < experts as i32, found, -1);
        if id[(i, j)] >= 0 {
            chosen.atomic_or((p / WORD, id[(i, j)].to_index()), bit(p));
        }
    }
    let (aligned, start) = (t.shared::<i32, 1>([experts]), t.shared::<i32, 1>([experts]));
    for e in t.parallel(experts) {
        let (all, alignment) = (counts[(0, e)] + counts[(1, e)], alignment as i32);
        aligned[e] = (all + (alignment - 1)) / alignment * alignment;
    }
    t.scan(ScanOp::Sum, aligned, start, 0, false, true);

    for (i, j) in t.parallel((chunk, k)) {
        let (token, p, e) = (first + i, i * k + j, id[(i, j)].max(0).to_index());
        let earlier = (0..words).map(|w| {
            let all = chosen[(w, e)];
            let own = cmp::eq(&(p / WORD), &w);
            select(p / WORD > w, all, select(own, all & (bit(p) - 1), 0)).count_ones()
        });
        let rank = earlier.reduce(|x, y| x + y).expect("a block places pairs");
        let position = start[e] + counts[(0, e)] + rank.cast::<i32>();
        if id[(i, j)] >= 0 {
            let at = position.to_index();
            pos_to_expert[at] = id[(i, j)];
            pos_to_token[at] = token.cast::<i32>();
            pos_to_token_topk[at] = (first * k + p).cast::<i32>();
        }
        token_topk_to_pos[(token, j)] = select(id[(i, j)] >= 0, position, -1);
    }

    // Padding: every block fills that of some experts, and a part of the surplus.
    let pad = |at: Idx| {
        pos_to_expert[at] = -1;
        pos_to_token[at] = -1;
        pos_to_token_topk[at] = -1;
    };
    for (round, i) in t.parallel((lit::<index>(experts).ceil_div(blocks), alignment)) {
        let e = round * blocks + b;
        if e < experts {
            let count = counts[(0, e)] + counts[(1, e)];
            if i < (aligned[e] - count).to_index() {
                pad((start[e] + count).to_index() + i);
            }
        }
    }
    let used = (start[experts - 1] + aligned[experts - 1]).to_index();
    let surplus = pos_to_expert.dim(0) - used;
    let share = surplus.max(0).ceil_div(blocks);
    for i in t.parallel(share) {
        if b * share + i < surplus {
            pad(used + b * share + i);
        }
    }
    if b == 0 {
        for e in t.parallel(experts) {
            expert_start[e] = start[e];
            expert_end[e] = start[e] + aligned[e];
            tokens_per_expert[e] = aligned[e];
        }
    }
}

/// The library's entry.
pub struct Entry;

/// Names of the outputs, in order.
const OUTPUTS: [&str; 7] = [
    "pos_to_expert",
    "pos_to_token",
    "pos_to_token_topk",
    "token_topk_to_pos",
    "expert_start",
    "expert_end",
    "tokens_per_expert",
];

impl Entry {
    fn launcher(ids: DType, cfg: MappingConfig) -> Result<Box<dyn Kernel>, ProblemError> {
        id_type!(ids, I, Ok(Box::new(GetFusedMapping::<I>::new(cfg))))
    }
}

/// What the ids of a case are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    Random,
    /// All slots empty.
    Nothing,
    /// Every token goes to one expert.
    Same,
}

fn case(tokens: usize, k: usize, experts: usize, dtype: DType, choice: Choice, cfg: MappingConfig) -> Case {
    let name = format!("t={tokens} k={k} e={experts} {dtype} align={} {choice:?}", cfg.alignment);
    Case::new(name.to_lowercase(), cfg, move |cfg| {
        let mut ids = random_ids(&mut Inputs::new(6), tokens, experts, k);
        match choice {
            Choice::Random => {}
            Choice::Nothing => ids.fill(-1),
            Choice::Same => ids.iter_mut().enumerate().for_each(|(i, id)| *id = if i % k == 0 { 3 } else { -1 }),
        }
        // Room for the worst case, as a caller who does not know the counts allocates.
        let positions = (tokens * k + experts * (cfg.alignment - 1)).next_multiple_of(cfg.alignment);
        let shapes: [&[usize]; 7] =
            [&[positions], &[positions], &[positions], &[tokens, k], &[experts], &[experts], &[experts]];
        let mut args = vec![Value::Tensor(int_tensor(dtype, &[tokens, k], &ids)?)];
        for shape in shapes {
            args.push(Value::Tensor(output(DType::I32, shape)?));
        }
        let work = Work::of(&args);
        let verify = move |args: &[Value]| {
            let want = reference::fused_mapping(&ids, tokens, k, experts, cfg.alignment, positions);
            let want = [
                want.pos_to_expert,
                want.pos_to_token,
                want.pos_to_token_topk,
                want.token_topk_to_pos,
                want.expert_start,
                want.expert_end,
                want.tokens_per_expert,
            ];
            let compare = |((name, got), want): ((&&'static str, &Value), &Vec<i32>)| {
                let Value::Tensor(tensor) = got else { unreachable!("all arguments are tensors") };
                let want = int_tensor(DType::I32, tensor.shape(), want).expect("as large as the kernel's own");
                Comparison::exact(name, got, &want)
            };
            OUTPUTS.iter().zip(&args[1..]).zip(&want).map(compare).collect()
        };
        Ok(Problem { kernel: Entry::launcher(dtype, cfg)?, args, work, verify: Box::new(verify) })
    })
}

impl LibraryKernel for Entry {
    fn info(&self) -> Info {
        Info {
            name: "get_fused_mapping",
            family: Family::Moe,
            summary: "maps between (token, slot) pairs and rows of an expert-sorted, padded buffer",
            equation: "pos[t,j] = start[ids[t,j]] + |{(t',j') < (t,j): ids[t',j'] = ids[t,j]}|, start padded to the alignment",
            tolerance: "exact",
            source: "V4 specification 3.2; TileKernels get_fused_mapping",
        }
    }

    fn settings(&self) -> Box<dyn Settings> {
        Box::new(MappingConfig::default())
    }

    fn instantiate(&self, settings: &[(String, TuneValue)], dtypes: &Dtypes) -> Result<Box<dyn Kernel>, ProblemError> {
        let cfg = apply(MappingConfig::default(), settings)?;
        Entry::launcher(dtypes.get("ids").copied().unwrap_or(DType::I64), cfg)
    }

    fn cases(&self, scale: Scale) -> Vec<Case> {
        use Choice::{Nothing, Random, Same};
        let align = |alignment| MappingConfig { alignment, ..MappingConfig::default() };
        let (i64, i32) = (DType::I64, DType::I32);
        match scale {
            Scale::Small => {
                let small = |alignment| MappingConfig { alignment, chunk: 16, counted: 16, threads: 128 };
                vec![
                    case(0, 6, 16, i64, Random, small(16)),
                    case(1, 6, 72, i64, Random, small(16)),
                    case(37, 6, 72, i64, Random, small(1)),
                    case(37, 2, 9, i32, Random, small(64)),
                    case(50, 1, 4, i32, Random, small(128)),
                    case(21, 6, 24, i64, Nothing, small(16)),
                    case(40, 3, 8, i64, Same, small(16)),
                ]
            }
            Scale::Representative => vec![case(4096, 6, 384, i64, Random, align(128))],
            Scale::Full => vec![
                case(4001, 6, 256, i64, Random, align(128)),
                case(4096, 6, 384, i64, Random, align(1)),
                case(8001, 9, 72, i32, Random, align(64)),
                case(1, 6, 256, i64, Random, align(16)),
                case(4096, 6, 256, i64, Same, align(128)),
            ],
        }
    }
}
