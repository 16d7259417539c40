//! The library page of the documentation, `docs/library.md`: written from the kernels' own metadata, so that it cannot say
//! anything else than they do. A test compares; `ZELLIGE_BLESS=1` rewrites the page.

use super::describe::Description;
use crate::library::{Family, LibraryKernel, ProblemError, all};
use std::fmt::Write;

/// The rows of the V4 specification's kernel table that the library answers for, and the kernels that do. Layers that are
/// functions of several kernels are named by their Rust paths.
const ROWS: [(&str, &str, &[&str]); 32] = [
    ("4", "output projection of groups of heads: bf16, FP8", &["batched_gemm"]),
    ("10", "Hadamard transform", &["hadamard"]),
    ("24", "mHC expand, forward and backward", &["mhc_expand", "mhc_expand_backward"]),
    ("25", "mHC norm weight merged into the projection", &["mhc_norm_weight", "mhc_norm_weight_backward"]),
    ("26", "mHC projection with sums of squares, split along the sum", &["mhc_mix", "mhc_mix_norm", "mhc_post_mix"]),
    ("27", "mHC projection, backward", &["mhc_mix_norm_backward", "mhc_mix_backward"]),
    ("28", "mHC split of the mixes, forward and backward", &["mhc_split", "mhc_split_backward"]),
    ("29", "Sinkhorn normalisation, forward and backward", &["mhc_sinkhorn", "mhc_sinkhorn_backward"]),
    ("30", "mHC apply, forward and backward", &["mhc_apply", "mhc_apply_backward"]),
    ("31", "mHC post, forward and backward", &["mhc_post", "mhc_post_backward"]),
    ("32", "mHC head", &["mhc_head_mix", "mhc_head_mix_backward", "mhc_head"]),
    ("33", "mHC fused front, with RMSNorm", &["mhc_pre_big_fuse", "mhc_pre_big_fuse_norm"]),
    ("34", "mHC multi-layer recompute", &["mhc_recompute"]),
    ("35", "router GEMM", &["router_gemm"]),
    (
        "36",
        "top-k gate: scores, bias, groups, masks, replicas, ranks; gradient",
        &["gate", "top2_sum_gate", "gate_backward"],
    ),
    ("37", "hash routing", &["hash_gate"]),
    (
        "38",
        "weights, masks, unique groups, counts, load, group sums",
        &[
            "normalize_weight",
            "mask_indices_by_tp",
            "inplace_unique_group_indices",
            "group_count",
            "aux_fi",
            "topk_sum_and_topk_group_idx",
        ],
    ),
    ("39", "mapping of pairs to rows in expert order", &["get_fused_mapping", "expert_of_rows"]),
    ("40", "expand to expert order, with scale factors", &["expand_to_fused", "expand_to_fused_with_sf"]),
    ("41", "weighted reduce and its gradient", &["reduce_fused", "reduce_fused_backward"]),
    (
        "42-44",
        "grouped GEMM: bf16, FP8, FP8 by MXFP4, contiguous and masked; bf16 and FP8 over rows",
        &["grouped_gemm", "masked_gemm", "k_grouped_gemm", "k_grouped_scaled_gemm"],
    ),
    ("45", "SwiGLU, alone and with a per-token cast", &["swiglu", "swiglu_forward_and_per_token_cast"]),
    ("46", "SwiGLU, per-channel cast and transpose", &["swiglu_forward_and_per_channel_cast_and_transpose"]),
    (
        "47",
        "SwiGLU backward, alone and with a per-token cast",
        &["swiglu_backward", "swiglu_backward_and_per_token_cast"],
    ),
    (
        "49",
        "casts: per token, block, channel; scales only or given; gathered; transposed; lossless",
        &[
            "per_token_cast",
            "per_block_cast",
            "per_channel_cast",
            "per_channel_cast_and_transpose",
            "requant_cast",
            "per_block_cast_lossless",
        ],
    ),
    ("50", "casts back, e5m6", &["cast_back", "per_token_cast_e5m6", "cast_back_e5m6"]),
    (
        "51-53",
        "round trips, stochastic rounding, transpose",
        &["quant_round_trip", "stochastic_round", "batched_transpose"],
    ),
    ("54", "dense GEMM: bf16, FP8, FP8 by MXFP4; sum over a batch", &["gemm", "block_scaled_gemm", "batch_sum_gemm"]),
    (
        "55-56",
        "Muon and AdamW",
        &["muon_momentum", "muon_normalize", "muon_gram", "muon_product", "muon_update", "adamw"],
    ),
    (
        "57",
        "engram",
        &["engram_hash", "engram_fused_weight", "engram_gate", "engram_gate_backward", "engram_weight_grad"],
    ),
    (
        "58",
        "LM head, sampling top-k, cross-entropy, reverse KL",
        &["gemm", "sampling_topk", "cross_entropy", "cross_entropy_backward", "reverse_kl", "reverse_kl_backward"],
    ),
    (
        "59",
        "embedding and its gradient, ids by token, MTP norms",
        &["embedding", "token_order", "embedding_backward", "hash_gate", "mtp_input_norm"],
    ),
];

/// The page.
///
/// # Errors
/// If a kernel cannot be made with its default config: a mistake in the library.
pub fn markdown() -> Result<String, ProblemError> {
    let mut page = String::from(HEAD);
    let mut kernels: Vec<&dyn LibraryKernel> = all().to_vec();
    kernels.sort_by_key(|k| (k.info().family, k.info().name));
    for family in Family::ALL {
        let _ = write!(page, "\n| {} | |\n| --- | --- |\n", family.name());
        for info in kernels.iter().map(|k| k.info()).filter(|i| i.family == family) {
            let _ = writeln!(page, "| {} | {} |", link(info.name), cell(info.summary));
        }
    }
    page.push_str("\n## By row of the specification's kernel table\n\n| row | | kernels |\n| --- | --- | --- |\n");
    for (row, what, names) in ROWS {
        let names: Vec<String> = names.iter().map(|n| link(n)).collect();
        let _ = writeln!(page, "| {row} | {what} | {} |", names.join(", "));
    }
    page.push_str("\n## Kernels\n");
    for kernel in kernels {
        section(&mut page, &Description::of(kernel)?);
    }
    Ok(page)
}

const HEAD: &str = "# Library

Every kernel of the library: what it computes, its arguments, its config, how its results are compared with the reference, and where
its definition comes from. This page is written from the kernels' metadata by `zellige list --markdown`; do not edit it.

Three layers are one call each, made of these kernels: `zellige_kernels::moe::layer::MoeLayer` (router to combined output on quantised
weights), `zellige_kernels::moe::training::MoeTraining` (the same in bf16, forward and backward) and
`zellige_kernels::mhc::layer::MhcLayer` (a hyper-connection around a sub-layer, forward, backward and fused for inference).
";

fn link(name: &str) -> String {
    format!("[`{name}`](#{name})")
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The part of a kernel.
fn section(page: &mut String, d: &Description) {
    let _ = write!(page, "\n### {}\n\n{}.\n\n```text\n{}\n```\n\n", d.kernel, capitalised(d.summary), d.equation);
    let doc: Vec<&str> = d.doc.lines().map(str::trim_end).collect();
    let _ = write!(page, "{}\n\n", plain_links(&doc.join("\n")));
    page.push_str("| argument | | |\n| --- | --- | --- |\n");
    for a in &d.arguments {
        let rows_apart = if a.strided { ", rows may lie apart" } else { "" };
        let _ = writeln!(page, "| `{}` | {} | `{}`{rows_apart} |", a.name, a.access, a.shape());
    }
    if !d.config.is_empty() {
        page.push_str("\n| config | default | tuned over |\n| --- | --- | --- |\n");
        for f in &d.config {
            let _ = writeln!(page, "| `{}` | {} | {} |", f.name, f.default, f.values.join(", "));
        }
    }
    let dims = d.static_dims.join(", ");
    let compiled = if dims.is_empty() { String::new() } else { format!("Compiled for each {dims}. ") };
    let _ = write!(page, "\n{compiled}Tolerance: {}. Source: {}.\n", d.tolerance, d.source);
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Documentation without the targets of its links, which are Rust paths.
fn plain_links(doc: &str) -> String {
    let mut out = String::new();
    let mut rest = doc;
    while let Some(at) = rest.find("`](") {
        let (before, after) = rest.split_at(at + 1);
        let end = after.find(')').map_or(after.len(), |e| e + 1);
        match before.rfind("[`") {
            Some(open) => {
                out.push_str(&before[..open]);
                out.push_str(&before[open + 1..]);
            }
            None => out.push_str(before),
        }
        rest = &after[end..];
    }
    out.push_str(rest);
    // What is left are links by name alone.
    out.replace("[`", "`").replace("`]", "`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_page_is_what_the_library_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/library.md");
        let page = markdown().unwrap();
        if std::env::var_os("ZELLIGE_BLESS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let at = found.lines().zip(page.lines()).position(|(f, p)| f != p);
        assert!(
            found == page,
            "docs/library.md is stale from line {} on: run `ZELLIGE_BLESS=1 cargo test -p zellige-kernels --lib page`",
            at.unwrap_or(found.lines().count().min(page.lines().count())) + 1
        );
    }

    #[test]
    fn the_rows_name_kernels_of_the_library() {
        let unknown: Vec<&str> =
            ROWS.iter().flat_map(|r| r.2.iter().copied()).filter(|name| crate::library::find(name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn links_to_rust_items_become_their_names() {
        assert_eq!(plain_links("as [`a`](super::a::a) and [`b`], [m, k]"), "as `a` and `b`, [m, k]");
    }
}
