//! Plans and their strategies.

use proptest::prelude::*;

/// An expression; what its numbers mean depends on where it is built.
#[derive(Clone, PartialEq, Debug)]
pub enum Expr {
    /// An element of a tile, read at the point itself, reversed or shifted.
    Tile {
        tile: u8,
        pattern: u8,
    },
    Const(i8),
    /// A parameter, a dim, a block coordinate, a loop index or a coordinate of the point.
    Scalar(u8),
    Unary(u8, Box<Expr>),
    Binary(u8, Box<Expr>, Box<Expr>),
    Fma(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `if a op b { x } else { y }`, the comparison in another type.
    Select {
        op: u8,
        ty: u8,
        operands: Box<[Expr; 4]>,
    },
    /// Computed in another type.
    Cast(u8, Box<Expr>),
}

/// A step of a program.
#[derive(Clone, PartialEq, Debug)]
pub enum Step {
    /// A new tile of one value.
    Fill {
        dtype: u8,
        shape: u8,
        scope: u8,
        value: i8,
    },
    /// A new tile from an input, shifted against the block's position.
    Load {
        input: u8,
        scope: u8,
        dtype: u8,
        transposed: bool,
        pad: i8,
        shift: i8,
    },
    /// A new tile, or one that exists, element by element.
    Elementwise {
        target: u8,
        fresh: bool,
        dtype: u8,
        shape: u8,
        scope: u8,
        loops: u8,
        value: Expr,
    },
    /// A new tile, each element the sum of a few terms in a local tile of the iteration.
    Accumulate {
        dtype: u8,
        shape: u8,
        scope: u8,
        loops: u8,
        trips: u8,
        term: Expr,
    },
    /// A new tile with a tile's elements, converted.
    Copy {
        tile: u8,
        scope: u8,
        dtype: u8,
        transposed: bool,
    },
    /// A rectangle of one tile into another.
    CopyPart {
        from: u8,
        to: u8,
        extents: [u8; 2],
        offsets: [u8; 4],
    },
    /// A reduction into a new tile, or twice into it.
    Reduce {
        tile: u8,
        op: u8,
        axis: u8,
        scope: u8,
        accumulate: bool,
    },
    Scan {
        tile: u8,
        op: u8,
        axis: u8,
        scope: u8,
        reverse: bool,
        exclusive: bool,
    },
    /// A product of tiles, or of inputs along `k`.
    Gemm {
        a: u8,
        b: u8,
        dtype: u8,
        start: i8,
        repeat: u8,
        from_inputs: bool,
        tf32: bool,
    },
    TopK {
        tile: u8,
        k: u8,
        largest: bool,
    },
    Sort {
        tile: u8,
        payload: bool,
        descending: bool,
    },
    Shuffle {
        tile: u8,
        op: u8,
        amount: i8,
        scope: u8,
    },
    Gather {
        input: u8,
        shape: u8,
        index: Expr,
        pad: i8,
    },
    Scatter {
        tile: u8,
        shift: i8,
    },
    /// Iterations combine values in a few shared counters.
    Atomic {
        op: u8,
        shape: u8,
        value: Expr,
        global: bool,
    },
    /// Elements stored straight to an output.
    Store {
        value: Expr,
    },
    /// Rows dealt out to blocks.
    Persistent {
        tile: u8,
    },
    If {
        cond: Expr,
        then_steps: Vec<Step>,
        else_steps: Vec<Step>,
    },
    For {
        kind: u8,
        trips: u8,
        steps: Vec<Step>,
    },
    While {
        trips: u8,
        steps: Vec<Step>,
    },
    Role {
        consumer: u8,
        steps: Vec<Step>,
    },
    Hint {
        tile: u8,
        layout: u8,
    },
}

/// A whole program.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Choices of the tile extents along m, n and k.
    pub tiles: [u8; 3],
    /// What m, n and k exceed whole tiles by.
    pub rest: [u8; 3],
    /// Blocks along m and n, steps along k.
    pub blocks: [u8; 3],
    /// Element type and axes of each input.
    pub inputs: Vec<(u8, u8)>,
    pub threads: u8,
    pub panel: u8,
    pub steps: Vec<Step>,
    /// Seed of the arguments' contents.
    pub data: u64,
}

/// All expressions of a few operations.
fn exprs() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        4 => (any::<u8>(), 0..6u8).prop_map(|(tile, pattern)| Expr::Tile { tile, pattern }),
        1 => any::<i8>().prop_map(Expr::Const),
        2 => any::<u8>().prop_map(Expr::Scalar),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let e = move || inner.clone().prop_map(Box::new);
        let four = (e(), e(), e(), e()).prop_map(|(a, b, c, d)| Box::new([*a, *b, *c, *d]));
        prop_oneof![
            4 => (any::<u8>(), e(), e()).prop_map(|(op, x, y)| Expr::Binary(op, x, y)),
            3 => (any::<u8>(), e()).prop_map(|(op, x)| Expr::Unary(op, x)),
            1 => (e(), e(), e()).prop_map(|(x, y, z)| Expr::Fma(x, y, z)),
            1 => (any::<u8>(), any::<u8>(), four).prop_map(|(op, ty, operands)| Expr::Select { op, ty, operands }),
            1 => (any::<u8>(), e()).prop_map(|(ty, x)| Expr::Cast(ty, x)),
        ]
    })
}

fn leaf_steps() -> impl Strategy<Value = Step> {
    let n = any::<u8>;
    let b = any::<bool>;
    let s = -3..4i8;
    prop_oneof![
        1 => (n(), n(), n(), any::<i8>())
            .prop_map(|(dtype, shape, scope, value)| Step::Fill { dtype, shape, scope, value }),
        4 => (n(), n(), n(), b(), any::<i8>(), s.clone()).prop_map(|(input, scope, dtype, transposed, pad, shift)| {
            Step::Load { input, scope, dtype, transposed, pad, shift }
        }),
        6 => (n(), b(), n(), n(), n(), n(), exprs()).prop_map(|(target, fresh, dtype, shape, scope, loops, value)| {
            Step::Elementwise { target, fresh, dtype, shape, scope, loops, value }
        }),
        1 => (n(), n(), n(), n(), 0..5u8, exprs()).prop_map(|(dtype, shape, scope, loops, trips, term)| {
            Step::Accumulate { dtype, shape, scope, loops, trips, term }
        }),
        2 => (n(), n(), n(), b())
            .prop_map(|(tile, scope, dtype, transposed)| Step::Copy { tile, scope, dtype, transposed }),
        2 => (n(), n(), any::<[u8; 2]>(), any::<[u8; 4]>())
            .prop_map(|(from, to, extents, offsets)| Step::CopyPart { from, to, extents, offsets }),
        3 => (n(), n(), n(), n(), b())
            .prop_map(|(tile, op, axis, scope, accumulate)| Step::Reduce { tile, op, axis, scope, accumulate }),
        2 => (n(), n(), n(), n(), b(), b()).prop_map(|(tile, op, axis, scope, reverse, exclusive)| {
            Step::Scan { tile, op, axis, scope, reverse, exclusive }
        }),
        3 => (n(), n(), n(), -3..4i8, 1..4u8, b(), b()).prop_map(|(a, b, dtype, start, repeat, from_inputs, tf32)| {
            Step::Gemm { a, b, dtype, start, repeat, from_inputs, tf32 }
        }),
        1 => (n(), n(), b()).prop_map(|(tile, k, largest)| Step::TopK { tile, k, largest }),
        1 => (n(), b(), b()).prop_map(|(tile, payload, descending)| Step::Sort { tile, payload, descending }),
        1 => (n(), n(), -2..34i8, n()).prop_map(|(tile, op, amount, scope)| Step::Shuffle { tile, op, amount, scope }),
        1 => (n(), n(), exprs(), any::<i8>())
            .prop_map(|(input, shape, index, pad)| Step::Gather { input, shape, index, pad }),
        1 => (n(), s).prop_map(|(tile, shift)| Step::Scatter { tile, shift }),
        1 => (n(), n(), exprs(), b()).prop_map(|(op, shape, value, global)| Step::Atomic { op, shape, value, global }),
        2 => exprs().prop_map(|value| Step::Store { value }),
        1 => n().prop_map(|tile| Step::Persistent { tile }),
        1 => (n(), n()).prop_map(|(tile, layout)| Step::Hint { tile, layout }),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    leaf_steps().prop_recursive(2, 12, 4, |inner| {
        let block = move || prop::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            4 => leaf_steps(),
            1 => (exprs(), block(), block())
                .prop_map(|(cond, then_steps, else_steps)| Step::If { cond, then_steps, else_steps }),
            2 => (any::<u8>(), 0..4u8, block()).prop_map(|(kind, trips, steps)| Step::For { kind, trips, steps }),
            1 => (0..4u8, block()).prop_map(|(trips, steps)| Step::While { trips, steps }),
            1 => (any::<u8>(), block()).prop_map(|(consumer, steps)| Step::Role { consumer, steps }),
        ]
    })
}

/// All plans.
pub fn plans() -> impl Strategy<Value = Plan> {
    (
        (any::<[u8; 3]>(), any::<[u8; 3]>(), any::<[u8; 3]>()),
        prop::collection::vec(any::<(u8, u8)>(), 1..5),
        (any::<u8>(), any::<u8>()),
        prop::collection::vec(steps(), 1..10),
        any::<u64>(),
    )
        .prop_map(|((tiles, rest, blocks), inputs, (threads, panel), steps, data)| Plan {
            tiles,
            rest,
            blocks,
            inputs,
            threads,
            panel,
            steps,
            data,
        })
}
