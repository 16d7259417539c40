//! The example computes what the README shows.

#[path = "../examples/gemm.rs"]
#[allow(dead_code)]
mod gemm;

#[test]
fn the_readme_shows_the_output_of_the_example() {
    let readme = include_str!("../../README.md");
    let shown = readme.split("```\n").find(|block| block.starts_with("$ cargo run -p zellige --example gemm"));
    let shown = shown.expect("the README runs the example").split_once('\n').expect("a command and its output").1;
    assert_eq!(gemm::product().expect("the example runs"), shown);
}
