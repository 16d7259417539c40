//! Linear algebra over GF(2) on columns of up to 64 bits. Depends on nothing.

/// One reduced row of an [`Echelon`]: `vector` is the sum of the columns in `combo`.
#[derive(Clone, Copy, Debug)]
struct Row {
    vector: u64,
    combo: u64,
    lead: u32,
}

/// The column space of a matrix over GF(2) in reduced form, with the combination that produced each basis vector.
///
/// Columns are taken in order; the first maximal independent set are the *pivots*, the others depend on pivots before
/// them. Combinations use pivot columns only, so the solution of `solve` is zero on every other column.
#[derive(Clone, Debug)]
pub(super) struct Echelon {
    rows: Vec<Row>,
    /// Columns that depend on earlier ones, as a mask.
    free: u64,
    /// One kernel vector per free column: that column and the pivots that cancel it.
    kernel: Vec<u64>,
}

impl Echelon {
    pub fn new(columns: &[u64]) -> Echelon {
        let mut e = Echelon { rows: Vec::new(), free: 0, kernel: Vec::new() };
        for (i, &column) in columns.iter().enumerate() {
            let (vector, combo) = e.reduce(column);
            let combo = combo ^ 1 << i;
            if vector == 0 {
                e.free |= 1 << i;
                e.kernel.push(combo);
                continue;
            }
            let lead = vector.trailing_zeros();
            for row in &mut e.rows {
                if row.vector >> lead & 1 == 1 {
                    row.vector ^= vector;
                    row.combo ^= combo;
                }
            }
            e.rows.push(Row { vector, combo, lead });
        }
        e
    }

    /// `target` less its part in the span, and the pivots whose sum that part is.
    fn reduce(&self, target: u64) -> (u64, u64) {
        self.rows.iter().fold((target, 0), |(v, c), row| {
            // Rows are fully reduced: no row has a bit at another's lead, so one pass suffices.
            if v >> row.lead & 1 == 1 { (v ^ row.vector, c ^ row.combo) } else { (v, c) }
        })
    }

    /// The pivot columns whose sum is `target`.
    pub fn solve(&self, target: u64) -> Option<u64> {
        let (rest, combo) = self.reduce(target);
        (rest == 0).then_some(combo)
    }

    pub fn rank(&self) -> usize {
        self.rows.len()
    }

    pub fn free(&self) -> u64 {
        self.free
    }

    pub fn kernel(&self) -> &[u64] {
        &self.kernel
    }

    /// Columns of a matrix `G` on `bits` input bits with `F G F = F`; it is the right inverse of a surjective `F`
    /// and the left inverse of an injective one.
    pub fn section(&self, bits: usize) -> Vec<u64> {
        let mut columns = vec![0; bits];
        for row in &self.rows {
            columns[row.lead as usize] = row.combo;
        }
        columns
    }
}

/// The sum of the `columns` selected by `vector`.
pub(super) fn multiply(columns: &[u64], vector: u64) -> u64 {
    let mut out = 0;
    let mut rest = vector;
    while rest != 0 {
        out ^= columns[rest.trailing_zeros() as usize];
        rest &= rest - 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_inverts_and_finds_the_kernel() {
        // Columns 0, 1 and their sum; column 3 is zero.
        let columns = [0b011, 0b110, 0b101, 0];
        let e = Echelon::new(&columns);
        assert_eq!(e.rank(), 2);
        assert_eq!(e.free(), 0b1100);
        assert_eq!(e.kernel(), [0b0111, 0b1000]);
        assert_eq!(e.solve(0b101), Some(0b0011));
        assert_eq!(e.solve(0b001), None);
        let g = e.section(3);
        for x in 0..16 {
            let y = multiply(&columns, x);
            assert_eq!(multiply(&columns, multiply(&g, y)), y);
        }
    }
}
