//! The files of a checkpoint: named f32 matrices as safetensors.

use std::{borrow::Cow, collections::BTreeMap};

use anyhow::{Result, bail};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, View};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor<2>>;

/// A tensor whose bytes are made when they are written: of all of them there is one copy at a time, the file's.
struct Stored<'a> {
    tensor: &'a Tensor<2>,
    shape: [usize; 2],
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.to_data().try_into_vec::<f32>().expect("what learns is f32");
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// A whole file, as safetensors has it.
pub(crate) fn encode(tensors: &[(String, Tensor<2>)]) -> Result<Vec<u8>> {
    let stored = |(name, tensor)| (name, Stored { tensor, shape: Tensor::dims(tensor) });
    Ok(safetensors::serialize(tensors.iter().map(|(name, tensor)| stored((name, tensor))), None)?)
}

/// What is not finite is never stored: a run that goes on from it would learn nothing.
pub(crate) fn expect_finite(bytes: &[u8]) -> Result<()> {
    for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
        if let Some(found) = numbers(view.data()).find(|value| !value.is_finite()) {
            bail!(
                "`{name}`: expected finite numbers, found {found}\nhint: train with a lower `learning_rate` into another output"
            );
        }
    }
    Ok(())
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// The tensors of a file, on `device`.
pub(crate) fn decode(bytes: &[u8], device: &Device) -> Result<Tensors> {
    let mut tensors = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(bytes)?.iter() {
        let &[rows, columns] = view.shape() else {
            bail!("`{name}`: expected two axes, found {:?}", view.shape())
        };
        let data = TensorData::new(numbers(view.data()).collect::<Vec<_>>(), [rows, columns]);
        tensors.insert(name.to_owned(), Tensor::from_data(data, device));
    }
    Ok(tensors)
}
