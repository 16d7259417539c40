//! Shared machinery of zellige's end-to-end and differential tests: filetests, mutants and random programs.

pub mod filetest;
pub mod mutation;
pub mod random;
pub mod simulate;
