//! Properties of the algebra on random layouts.

use proptest::prelude::*;

use super::*;

/// Digits of a dimension: bits with a few odd ones among them.
fn radices() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop::sample::select(vec![2usize, 2, 2, 2, 3, 5, 9]), 0..4)
}

fn space(prefix: &'static str) -> impl Strategy<Value = Space> {
    prop::collection::vec(radices(), 1..4).prop_map(move |dims| {
        Space::new(dims.iter().enumerate().map(|(i, r)| Dim::with_radices(format!("{prefix}{i}"), r).unwrap())).unwrap()
    })
}

/// A random layout from `input` to `output`: random columns, odd digits matched at random.
fn between(input: Space, output: Space) -> impl Strategy<Value = LinearLayout> {
    let width = output.bits().len();
    let mask = if width == 0 { 0 } else { u64::MAX >> (64 - width) };
    let columns = prop::collection::vec(any::<u64>().prop_map(move |c| c & mask), input.bits().len());
    let picks = prop::collection::vec(any::<prop::sample::Index>(), output.odds().len());
    (columns, picks).prop_map(move |(columns, picks)| {
        let sources = output.odds().iter().zip(&picks).map(|(d, pick)| {
            let fits: Vec<usize> = (0..input.odds().len()).filter(|&i| input.odds()[i].radix == d.radix).collect();
            // One more choice than there are sources: none.
            let i = pick.index(fits.len() + 1);
            fits.get(i).copied()
        });
        LinearLayout { sources: sources.collect(), input: input.clone(), output: output.clone(), columns }
    })
}

fn layout() -> impl Strategy<Value = LinearLayout> {
    (space("x"), space("y")).prop_flat_map(|(x, y)| between(x, y))
}

fn chain() -> impl Strategy<Value = (LinearLayout, LinearLayout, LinearLayout)> {
    (space("x"), space("y"), space("z"), space("w"))
        .prop_flat_map(|(x, y, z, w)| (between(x, y.clone()), between(y, z.clone()), between(z, w)))
}

fn sample(space: &Space) -> Vec<Coord> {
    let step = (space.size() / 64).max(1);
    space.points().step_by(step).collect()
}

proptest! {
    #[test]
    fn composition_is_application_in_turn((f, g, h) in chain()) {
        let fg = f.then(&g).unwrap();
        for x in sample(f.input()) {
            prop_assert_eq!(fg.apply(&x), g.apply(&f.apply(&x)));
        }
        prop_assert_eq!(fg.then(&h).unwrap(), f.then(&g.then(&h).unwrap()).unwrap());
        prop_assert_eq!(LinearLayout::identity(f.input()).then(&f).unwrap(), f.clone());
        prop_assert_eq!(f.then(&LinearLayout::identity(f.output())).unwrap(), f);
    }

    #[test]
    fn inverses_invert(f in layout()) {
        prop_assert_eq!(f.left_inverse().is_ok(), f.is_injective());
        prop_assert_eq!(f.right_inverse().is_ok(), f.is_surjective());
        prop_assert_eq!(f.inverse().is_ok(), f.is_bijective());
        if let Ok(g) = f.left_inverse() {
            prop_assert_eq!(f.then(&g).unwrap(), LinearLayout::identity(f.input()));
        }
        if let Ok(g) = f.right_inverse() {
            prop_assert_eq!(g.then(&f).unwrap(), LinearLayout::identity(f.output()));
            for y in sample(f.output()) {
                prop_assert_eq!(f.apply(&g.apply(&y)), y);
            }
        }
    }

    #[test]
    fn injectivity_and_surjectivity_are_what_points_say(f in layout()) {
        prop_assume!(f.input().size() <= 4096 && f.output().size() <= 4096);
        let mut images: Vec<Coord> = f.input().points().map(|p| f.apply(&p)).collect();
        images.sort();
        images.dedup();
        prop_assert_eq!(f.is_injective(), images.len() == f.input().size());
        prop_assert_eq!(f.is_surjective(), images.len() == f.output().size());
    }

    #[test]
    fn primary_inputs_reach_each_image_once(f in layout()) {
        prop_assume!(f.input().size() <= 4096);
        let replication = f.replication();
        let image = |p: &Coord| f.apply(p);
        let mut all: Vec<Coord> = f.input().points().map(|p| image(&p)).collect();
        all.sort();
        all.dedup();
        let mut primary: Vec<Coord> =
            f.input().points().filter(|p| replication.is_primary(p)).map(|p| image(&p)).collect();
        primary.sort();
        prop_assert_eq!(all, primary);
        prop_assert_eq!(f.input().points().filter(|p| replication.is_primary(p)).count() * replication.count(), f.input().size());
        for k in &replication.kernel {
            prop_assert!(f.apply(k).iter().all(|&c| c == 0));
        }
    }

    #[test]
    fn a_product_acts_on_low_and_high_digits_apart(low in layout(), high in layout()) {
        prop_assume!(low.input().bits().len() + high.input().bits().len() <= 64);
        let both = low.product(&high).unwrap();
        // Dimensions of one name share their digits: pick coordinates of both and add them up.
        let pack = |a: &Coord, b: &Coord, from: [&Space; 2], to: &Space| -> Coord {
            to.dims().iter().map(|d| {
                let value = |s: &Space, c: &Coord| s.position(d.name()).ok().map(|p| (c[p], s.dims()[p].extent()));
                let (x, scale) = value(from[0], a).unwrap_or((0, 1));
                x + scale * value(from[1], b).map_or(0, |v| v.0)
            }).collect()
        };
        for x in sample(low.input()).iter().step_by(7) {
            for y in sample(high.input()).iter().step_by(5) {
                let point = pack(x, y, [low.input(), high.input()], both.input());
                let want = pack(&low.apply(x), &high.apply(y), [low.output(), high.output()], both.output());
                prop_assert_eq!(both.apply(&point), want);
            }
        }
        prop_assert_eq!(both.is_injective(), low.is_injective() && high.is_injective());
        prop_assert_eq!(both.is_surjective(), low.is_surjective() && high.is_surjective());
    }

    #[test]
    fn products_associate(a in layout(), b in layout(), c in layout()) {
        let bits = |f: &LinearLayout| f.input().bits().len().max(f.output().bits().len());
        prop_assume!(bits(&a) + bits(&b) + bits(&c) <= 64);
        let left = a.product(&b).unwrap().product(&c).unwrap();
        prop_assert_eq!(left, a.product(&b.product(&c).unwrap()).unwrap());
    }

    #[test]
    fn restriction_and_flattening_keep_values(f in layout()) {
        let inputs: Vec<&str> = f.input().dims().iter().map(Dim::name).collect();
        let outputs: Vec<&str> = f.output().dims().iter().rev().map(Dim::name).collect();
        let turned = f.transpose_outputs(&outputs).unwrap();
        let last = f.restrict(&inputs[inputs.len() - 1..], &outputs[..1]).unwrap();
        let flat = f.flatten_inputs("i").unwrap().flatten_outputs("o").unwrap();
        for (i, x) in f.input().points().enumerate().step_by((f.input().size() / 32).max(1)) {
            let y = f.apply(&x);
            prop_assert_eq!(turned.apply(&x).iter().rev().copied().collect::<Coord>(), y.clone());
            let place = y.iter().zip(f.output().dims()).rev().fold(0, |n, (c, d)| n * d.extent() + c);
            prop_assert_eq!(flat.apply(&[i])[0], place);
        }
        for v in 0..f.input().dims().last().unwrap().extent() {
            let mut x: Coord = inputs.iter().map(|_| 0).collect();
            *x.last_mut().unwrap() = v;
            prop_assert_eq!(last.apply(&[v])[0], *f.apply(&x).last().unwrap());
        }
    }

    #[test]
    fn text_round_trips(f in layout()) {
        prop_assert_eq!(f.to_string().parse::<LinearLayout>().unwrap(), f);
    }

    #[test]
    fn finer_cuts_are_the_same_function(f in layout()) {
        // Cut every 9 into 3 times 3.
        let finer = Space::new(f.output().dims().iter().map(|d| {
            let radices: Vec<usize> = d.radices().iter().flat_map(|&r| if r == 9 { vec![3, 3] } else { vec![r] }).collect();
            Dim::with_radices(d.name().to_string(), &radices).unwrap()
        })).unwrap();
        let g = f.with_output_digits(&finer).unwrap();
        prop_assert_eq!(g.output(), &finer);
        prop_assert!(f.equivalent(&g) && g.equivalent(&f));
        for x in sample(f.input()) {
            prop_assert_eq!(f.apply(&x), g.apply(&x));
        }
    }
}

#[test]
fn cuts_that_carry_are_errors_but_still_compare() {
    let cut = |r: &[usize]| LinearLayout::identity(&Space::new([Dim::with_radices("x", r).unwrap()]).unwrap());
    let (a, b) = (cut(&[2, 3]), cut(&[3, 2]));
    assert_eq!(a.then(&b), Err(LayoutError::RadixMismatch { dim: "x".into(), left: vec![2, 3], right: vec![3, 2] }));
    assert!(a.equivalent(&b));
    assert_ne!(a, b);
    let c = LinearLayout::strided("x", 6, "y", 4).unwrap();
    assert_eq!((0..6).map(|i| c.apply(&[i])[0]).collect::<Vec<_>>(), [0, 4, 8, 12, 16, 20]);
    assert!(matches!(a.then(&c.rename("x", "z").unwrap()), Err(LayoutError::SpaceMismatch { .. })));
}

#[test]
fn construction_checks_its_arguments() {
    let out = Space::of([("y", 24)]).unwrap();
    let one = |b: Basis| LinearLayout::from_bases([("x", vec![b])], out.clone());
    assert!(one(Basis::bit(&[4])).is_ok());
    assert!(one(Basis::repeat(3, &[8])).is_ok());
    assert!(matches!(one(Basis::bit(&[8])), Err(LayoutError::BadImage { .. })), "a bit cannot drive an odd digit");
    assert!(matches!(one(Basis::repeat(3, &[4])), Err(LayoutError::BadImage { .. })));
    assert!(matches!(one(Basis::repeat(5, &[8])), Err(LayoutError::BadImage { .. })), "radices differ");
    assert!(matches!(one(Basis::bit(&[1, 1])), Err(LayoutError::ImageRank { .. })));
    assert!(matches!(one(Basis::bit(&[32])), Err(LayoutError::BadImage { .. })));
    let twice = LinearLayout::from_bases([("x", vec![Basis::repeat(3, &[8]), Basis::repeat(3, &[8])])], out.clone());
    assert!(matches!(twice, Err(LayoutError::OddDigitTaken { .. })));
    assert!(matches!(Dim::new("x", 0), Err(LayoutError::ZeroExtent { .. })));
    assert!(matches!(Dim::with_radices("x", &[4]), Err(LayoutError::BadRadix { radix: 4, .. })));
    assert!(matches!(Dim::new("a b", 4), Err(LayoutError::BadName { .. })));
    assert!(matches!(Space::of([("x", 2), ("x", 2)]), Err(LayoutError::DuplicateDim { .. })));
    let big: Vec<(String, usize)> = (0..5).map(|i| (format!("x{i}"), 1 << 16)).collect();
    assert!(matches!(Space::of(big), Err(LayoutError::TooManyBits { bits: 80, .. })));
}
