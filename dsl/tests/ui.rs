//! What rustc prints for a kernel that is wrong in its types or its control flow.

#[test]
fn wrong_kernels_are_rejected_with_our_wording() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
