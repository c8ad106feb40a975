//! Layers whose matrices are read from the files at every pass, the next one while this one computes.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;

use burn::tensor::{Device, Tensor};

use crate::layer::Layer;
use crate::peft::AdapterFiles;
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
    /// Matrices that an adapter has as a whole, by their names in the model: they are read from its file.
    adapter: Option<(Arc<AdapterFiles>, BTreeMap<String, String>)>,
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
            adapter: None,
        }
    }

    /// The same stream with an adapter's whole matrices in place of the base's.
    pub(crate) fn replaced(&self, adapter: &Arc<AdapterFiles>, stored: BTreeMap<String, String>) -> Self {
        Self {
            checkpoint: Arc::clone(&self.checkpoint),
            names: self.names.clone(),
            transposed: self.transposed,
            precision: self.precision,
            device: self.device.clone(),
            adapter: Some((Arc::clone(adapter), stored)),
        }
    }

    /// One matrix by its name, `[O, I]`.
    pub(crate) fn matrix(&self, name: &str, precision: Precision) -> Result<Tensor<2>, Error> {
        let replaced = self.adapter.as_ref().and_then(|(files, stored)| Some((files, stored.get(name)?)));
        let tensor = match replaced {
            Some((files, stored)) => files.weights.tensor(stored, precision, &self.device)?,
            None => self.checkpoint.tensor(name, precision, &self.device)?,
        };
        Ok(if self.transposed { tensor.transpose() } else { tensor })
    }

    /// The matrices of one layer, `[O, I]` each.
    fn read(&self, layer: usize) -> Result<Vec<Tensor<2>>, Error> {
        self.names[layer].iter().map(|name| self.matrix(name, self.precision)).collect()
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
