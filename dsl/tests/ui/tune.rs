use zellige::prelude::*;

#[derive(Clone, PartialEq, Debug, Tune)]
#[tune(limit = bm < 3)]
struct Wrong {
    bm: usize,
}

#[derive(Clone, PartialEq, Debug, Tune)]
enum Shape {
    Square,
}

fn main() {}
