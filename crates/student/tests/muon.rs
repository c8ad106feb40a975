//! Muon's steps equal PyTorch's, by the golden file of `tests/peers/golden_muon.py`.

use std::{fs, path::Path};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use softshard_student::{Optimizer, OptimizerKind};

/// Absolute; weights are about one. Five steps of f32 products in another order.
const CLOSE: f32 = 2e-5;
const STEPS: usize = 5;
const LEARNING_RATE: f64 = 0.02;
const WEIGHT_DECAY: f64 = 0.1;

#[test]
fn steps_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/muon.safetensors");
    let bytes = fs::read(path).expect("golden values");
    let golden = SafeTensors::deserialize(&bytes).expect("safetensors");
    let device = Device::flex().autodiff();
    let tensor = |name: &str| {
        let view = golden.tensor(name).expect("a golden tensor");
        let &[rows, columns] = view.shape() else { panic!("two axes") };
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
        Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device)
    };
    for shape in ["4x12", "12x4"] {
        let mut weight = tensor(&format!("{shape}.start")).require_grad();
        let mut parameters = vec![("model.layers.0.mlp.up_proj.weight".to_owned(), &mut weight)];
        let mut optimizer = Optimizer::new(OptimizerKind::Muon, WEIGHT_DECAY, &parameters);
        for step in 0..STEPS {
            let gradient = tensor(&format!("{shape}.gradient.{step}")).inner();
            optimizer.step(LEARNING_RATE, &mut parameters, vec![gradient]);
            let (found, expected) = (parameters[0].1.clone(), tensor(&format!("{shape}.after.{step}")));
            let difference = (found.inner() - expected.inner()).abs().max().into_scalar::<f32>();
            assert!(difference < CLOSE, "{shape} step {step}: off by {difference}");
        }
    }
}
