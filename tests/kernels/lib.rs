//! Holds the tests of our GPU kernels; see Cargo.toml.
