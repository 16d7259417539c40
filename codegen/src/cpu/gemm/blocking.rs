//! How many rows and columns a micro-kernel computes at once.

/// Vector registers of the machine.
const REGISTERS: usize = 16;

/// Registers that a row of the right operand, the spread element and Cranelift's three-operand multiply-add (which
/// overwrites a factor, never the sum) need beside accumulators and right operand. With fewer it spills, at half speed.
const TEMPORARIES: usize = 4;

/// More accumulators than this spill in practice.
const ACCUMULATORS: usize = 10;

/// Rows and vectors of four columns of a micro-kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Block {
    pub rows: usize,
    pub vectors: usize,
}

/// Estimated time of one step of `k`: two multiply-adds and two loads start in a cycle, and an accumulator is ready for
/// its next addition after four, in practice (with the move that each multiply-add needs) five: eight accumulators measure
/// a tenth slower than ten. Of equals, the block with fewer loads.
fn step_cost(rows: usize, vectors: usize) -> usize {
    let arithmetic = 3 * rows * vectors;
    let loads = 3 * (rows + vectors);
    8 * arithmetic.max(loads).max(30) + loads
}

/// Cost of covering `m` rows and `n` columns, with smaller kernels at the edges.
fn cover_cost(block: Block, m: usize, n: usize) -> usize {
    let vectors = n.div_ceil(4);
    let rows = [(block.rows, m / block.rows), (m % block.rows, 1)];
    let columns = [(block.vectors, vectors / block.vectors), (vectors % block.vectors, 1)];
    let mut cost = 0;
    for (r, r_count) in rows {
        for (v, v_count) in columns {
            if r > 0 && v > 0 {
                cost += r_count * v_count * step_cost(r, v);
            }
        }
    }
    cost
}

/// The cheapest block that fits the registers.
pub(super) fn choose(m: usize, n: usize) -> Block {
    let mut best = (usize::MAX, Block { rows: 1, vectors: 1 });
    for rows in 1..=ACCUMULATORS {
        for vectors in 1..=6 {
            let block = Block { rows, vectors };
            let fits = rows * vectors <= ACCUMULATORS && rows * vectors + vectors + TEMPORARIES <= REGISTERS;
            if fits && rows <= m && vectors <= n.div_ceil(4) {
                let cost = cover_cost(block, m, n);
                if cost < best.0 {
                    best = (cost, block);
                }
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_the_registers_and_the_shape() {
        for m in 1..40 {
            for n in 1..70 {
                let b = choose(m, n);
                assert!(b.rows * b.vectors + b.vectors < REGISTERS && b.rows <= m && b.vectors <= n.div_ceil(4));
            }
        }
        // Whole tiles use enough accumulators to hide the latency.
        let b = choose(128, 128);
        assert!(b.rows * b.vectors >= 8, "{b:?}");
    }
}
