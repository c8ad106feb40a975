//! Layers whose matrices are read from the files at every pass, the next one while this one computes.

use std::sync::{Arc, mpsc};
use std::thread;

use burn::tensor::{Device, Tensor};

use crate::layer::Layer;
use crate::weights::Checkpoint;
use crate::{Decoder, Error, Precision};

/// The matrices of each layer in the files.
#[derive(Debug)]
pub(crate) struct Stream {
    checkpoint: Arc<Checkpoint>,
    /// Of each layer the names of its matrices, in the order of its linear maps.
    names: Vec<Vec<String>>,
    transposed: bool,
    precision: Precision,
    device: Device,
}

impl Stream {
    pub(crate) fn new(checkpoint: Arc<Checkpoint>, decoder: &Decoder) -> Self {
        let names = decoder.config.names();
        let of_layer = |(index, layer): (usize, &Layer)| {
            let mut layer = layer.clone();
            let (_, linears) = layer.parts_mut(names);
            linears.iter().map(|(name, _)| format!("{}.{index}.{name}.weight", names.layers)).collect()
        };
        Self {
            names: decoder.layers.iter().enumerate().map(of_layer).collect(),
            checkpoint,
            transposed: decoder.config.transposed,
            precision: decoder.precision,
            device: decoder.device.clone(),
        }
    }

    /// The matrices of one layer, `[O, I]` each.
    fn read(&self, layer: usize) -> Result<Vec<Tensor<2>>, Error> {
        let read = |name: &String| {
            let tensor = self.checkpoint.tensor(name, self.precision, &self.device)?;
            Ok(if self.transposed { tensor.transpose() } else { tensor })
        };
        self.names[layer].iter().map(read).collect()
    }
}

impl Decoder {
    /// Gives the layers with their matrices to `each`, in this order. Of streamed ones two are in memory at a time: the
    /// one that computes and the one that is read meanwhile.
    ///
    /// # Errors
    /// Weights cannot be read, or are not finite.
    pub(crate) fn each_layer(
        &self,
        order: impl Iterator<Item = usize> + Send,
        mut each: impl FnMut(usize, &Layer),
    ) -> Result<(), Error> {
        let Some(stream) = &self.stream else {
            order.for_each(|index| each(index, &self.layers[index]));
            return Ok(());
        };
        let names = self.config.names();
        if rayon::current_thread_index().is_some() {
            // A worker that waited for the reader could be the one that the reader's conversion needs.
            for index in order {
                each(index, &self.layers[index].filled(names, stream.read(index)?));
            }
            return Ok(());
        }
        thread::scope(|scope| {
            // No slot: the reader waits with one layer in its hands.
            let (sender, receiver) = mpsc::sync_channel(0);
            scope.spawn(move || {
                for index in order {
                    let read = stream.read(index);
                    let failed = read.is_err();
                    if sender.send((index, read)).is_err() || failed {
                        return;
                    }
                }
            });
            for (index, read) in receiver {
                each(index, &self.layers[index].filled(names, read?));
            }
            Ok(())
        })
    }
}
