//! Continuations behind a context that is computed once, against each read as a whole text.

use std::{fs, path::PathBuf};

use burn::tensor::{Device, Tensor};
use softshard_model::{Arrangement, Branches, Decoder};

/// Padding and the order of sums differ; states are of the order of 1.
const STATES: f32 = 2e-5;

/// The models of every family and of every difference within one.
fn models() -> Vec<PathBuf> {
    let golden = softshard_e2e::root().join("tests/peers/golden");
    let mut models: Vec<PathBuf> =
        fs::read_dir(golden).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    models.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tiny-")));
    models.retain(|path| path.is_dir());
    models.sort();
    models
}

fn ids(seed: usize, count: usize) -> Vec<i32> {
    (0..count).map(|place| i32::try_from((seed * 31 + place * 17) % 75 + 1).expect("small")).collect()
}

fn values(states: Tensor<2>) -> Vec<f32> {
    states.try_into_vec_as::<f32>().expect("states are f32")
}

#[test]
fn continuations_have_the_states_of_whole_texts() {
    let models = models();
    assert!(models.len() > 10, "{models:?}");
    // Contexts and continuations of unlike and of like lengths, of one token, and alone.
    let shapes: [&[(usize, &[usize])]; 5] = [
        &[(12, &[3, 1, 5]), (5, &[2]), (1, &[4, 4])],
        &[(6, &[1, 1])],
        &[(7, &[2, 2, 2]), (7, &[2])],
        &[(20, &[20, 19]), (3, &[1])],
        &[(2, &[1]), (9, &[1, 2])],
    ];
    for model in models {
        let decoder = Decoder::load(&model, &Device::flex()).expect("a model");
        for shape in shapes {
            let contexts: Vec<Vec<i32>> =
                shape.iter().enumerate().map(|(seed, &(length, _))| ids(seed, length)).collect();
            let continuations: Vec<Vec<Vec<i32>>> = shape
                .iter()
                .enumerate()
                .map(|(seed, (_, lengths))| {
                    lengths.iter().enumerate().map(|(n, &length)| ids(seed + 7 * n + 3, length)).collect()
                })
                .collect();
            let (mut wholes, mut positions, mut branches) = (Vec::new(), Vec::new(), Vec::<Branches>::new());
            for (context, continuations) in contexts.iter().zip(&continuations) {
                for continuation in continuations {
                    wholes.push([&context[..], continuation].concat());
                    let last = context.len() + continuation.len();
                    let labelled = (context.len()..last).map(|place| i32::try_from(place).expect("small"));
                    positions.push(labelled.collect::<Vec<i32>>());
                }
                branches.push((context, continuations.iter().map(Vec::as_slice).collect()));
            }
            let wholes: Vec<&[i32]> = wholes.iter().map(Vec::as_slice).collect();
            let positions: Vec<&[i32]> = positions.iter().map(Vec::as_slice).collect();
            let expected = decoder.hidden_before(&wholes, &positions, Arrangement::Ragged).expect("states");
            let found = decoder.hidden_of_continuations(&branches).expect("states");
            assert_eq!(found.dims(), expected.dims(), "{} {shape:?}", model.display());
            for (found, expected) in values(found).into_iter().zip(values(expected)) {
                let near = (found - expected).abs() <= STATES * expected.abs().max(1.0);
                assert!(near, "{} {shape:?}: {found}, {expected}", model.display());
            }
        }
    }
}
