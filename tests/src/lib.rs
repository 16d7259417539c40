//! Shared machinery of zellige's end-to-end and differential tests: filetests and random programs.

pub mod filetest;
pub mod random;
pub mod simulate;
