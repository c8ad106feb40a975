//! The model on each of the devices that compute a step together, and the sum of what they find.
//!
//! The first is the one that learns. Every step takes its values to the others, which share the micro-batches with it and
//! bring back gradients; nothing else travels. Gradients are summed in the order of the micro-batches, so the curve
//! of one kind of device is the same, bit for bit, on any number of them. Why not by Burn's collectives:
//! docs/decisions/0011-several-devices.md.

use std::{
    ops::Range,
    panic::resume_unwind,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor};
use softshard_model::Decoder;

use crate::{gradients::Step, pass::Pass};

/// One decoder a device.
pub(crate) struct Replicas {
    /// The one that learns. It computes on the thread that asks for gradients.
    pub(crate) first: Decoder,
    others: Vec<Other>,
    /// Of each device the micro-batches that it computes at a time.
    workers: Vec<usize>,
}

/// A device with a thread of its own, for as long as the run: GPU runtimes keep memory for each thread that uses them.
struct Other {
    shares_memory: bool,
    orders: Sender<Order>,
    passes: Receiver<Result<Vec<Pass>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a device is told: the step, the parts of it that are its own, and the weights.
struct Order {
    step: Arc<Step>,
    parts: Vec<Range<usize>>,
    weights: Weights,
}

enum Weights {
    /// All of them, in the same memory.
    Shared(Box<Decoder>),
    /// Those that learn, on the CPU.
    Values(Arc<Vec<Tensor<2>>>),
}

impl Replicas {
    /// `first` beside copies of it on the other `devices`: in the same memory they share its weights, elsewhere `load` makes them,
    /// on all devices at the same time. More devices than `micro_batches` of a step are left alone.
    ///
    /// # Panics
    /// There is no device.
    pub(crate) fn new(
        first: Decoder,
        devices: &[(Device, usize)],
        micro_batches: usize,
        load: impl Fn(&Device) -> Result<Decoder> + Clone + Send + 'static,
    ) -> Self {
        let used = devices.len().min(micro_batches);
        if used < devices.len() {
            tracing::warn!(
                "{} devices, but a step has {micro_batches} micro-batches: {} do nothing\nhint: `accumulate_batches` = {} or a \
                 multiple of it uses all devices",
                devices.len(),
                devices.len() - used,
                devices.len()
            );
        }
        // Streamed layers are in memory once a device: one micro-batch at a time.
        let workers_of =
            |&(_, workers): &(Device, usize)| if first.is_streamed() { 1 } else { workers.max(1) };
        let workers = devices[..used].iter().map(workers_of).collect();
        let start = |(device, _): &(Device, usize)| {
            Other::start(&first, device, device == first.device(), load.clone())
        };
        Self { others: devices[1..used].iter().map(start).collect(), workers, first }
    }

    /// Forward and backward over every micro-batch of a step.
    ///
    /// # Errors
    /// Weights cannot be read; no other step can be computed then.
    pub(crate) fn sum(&mut self, step: &Arc<Step>) -> Result<Pass> {
        let shares = deal(step.batches.len(), &self.workers);
        self.give(step, &shares);
        let mut sum = Pass::default();
        for (device, part) in shares {
            let passes = match device.checked_sub(1) {
                None => step.passes(&self.first, part)?,
                Some(other) => self.others[other].take()?,
            };
            passes.into_iter().for_each(|pass| sum.add(pass));
        }
        Ok(sum)
    }

    /// Tells the other devices what is theirs, with the present values of what learns.
    fn give(&mut self, step: &Arc<Step>, shares: &[(usize, Range<usize>)]) {
        let mut values = None;
        for (index, other) in self.others.iter().enumerate() {
            let own = shares.iter().filter(|(device, _)| *device == index + 1);
            let parts: Vec<_> = own.map(|(_, part)| part.clone()).collect();
            if parts.is_empty() {
                continue;
            }
            let weights = if other.shares_memory {
                Weights::Shared(Box::new(self.first.clone()))
            } else {
                // Read back once for all of them.
                let read = || Arc::new(values_on(&Device::flex(), &mut self.first));
                Weights::Values(Arc::clone(values.get_or_insert_with(read)))
            };
            // One that is gone is found when its gradients are waited for.
            let _ = other.orders.send(Order { step: Arc::clone(step), parts, weights });
        }
    }
}

impl Other {
    fn start(
        first: &Decoder,
        device: &Device,
        shares_memory: bool,
        load: impl FnOnce(&Device) -> Result<Decoder> + Send + 'static,
    ) -> Self {
        let (orders, received) = channel();
        // No slot: a device is one result ahead of the sum at most.
        let (found, passes) = sync_channel(0);
        let (home, device) = (first.device().clone(), device.clone());
        let thread = thread::spawn(move || {
            let own = if shares_memory { Ok(None) } else { load(&device).map(Some) };
            match own {
                Ok(own) => work(own, &received, &found, &home),
                // Nobody waits for it where the run has ended.
                Err(error) => drop(found.send(Err(error))),
            }
        });
        Self { shares_memory, orders, passes, thread: Some(thread) }
    }

    /// The passes over its next part.
    fn take(&mut self) -> Result<Vec<Pass>> {
        self.passes.recv().unwrap_or_else(|_| {
            if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
                resume_unwind(panic);
            }
            Err(anyhow!("the thread of a device ended before its work"))
        })
    }
}

impl Drop for Other {
    /// Nothing computes any more when a run has ended.
    fn drop(&mut self) {
        (self.orders, self.passes) = (channel().0, channel().1);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::debug!("the thread of a device had panicked when the run ended");
        }
    }
}

/// Computes what is ordered until there are no more orders. The gradients go to the device `home`.
fn work(
    mut own: Option<Decoder>,
    orders: &Receiver<Order>,
    found: &SyncSender<Result<Vec<Pass>>>,
    home: &Device,
) {
    for Order { step, parts, weights } in orders {
        let shared;
        let decoder = match (weights, &mut own) {
            (Weights::Shared(decoder), _) => {
                shared = decoder;
                &*shared
            }
            (Weights::Values(values), Some(own)) => {
                let device = own.device().clone();
                for ((_, parameter), value) in own.parameters_mut().into_iter().zip(&*values) {
                    *parameter = Tensor::from_inner(moved(value, &device)).require_grad();
                }
                &*own
            }
            (Weights::Values(_), None) => unreachable!("values go to devices with weights of their own"),
        };
        for part in parts {
            let passes = step.passes(decoder, part).map(|mut passes| {
                for gradient in passes.iter_mut().flat_map(|pass| &mut pass.gradients) {
                    *gradient = moved(gradient, home);
                }
                passes
            });
            if found.send(passes).is_err() {
                return; // the run ended
            }
        }
    }
}

/// What learns, on `device`.
fn values_on(device: &Device, decoder: &mut Decoder) -> Vec<Tensor<2>> {
    let parameters = decoder.parameters_mut().into_iter();
    parameters.map(|(_, parameter)| moved(&parameter.clone().inner(), device)).collect()
}

/// The same numbers on another device, through the memory of the host.
fn moved(tensor: &Tensor<2>, device: &Device) -> Tensor<2> {
    if tensor.device() == *device {
        return tensor.clone();
    }
    Tensor::from_data(tensor.to_data(), (device, tensor.dtype()))
}

/// Who computes which of a step's micro-batches: in their order, so many at a time and one device after the other.
fn deal(batches: usize, workers: &[usize]) -> Vec<(usize, Range<usize>)> {
    let even = batches.div_ceil(workers.len());
    let mut shares = Vec::new();
    let mut next = 0;
    for (device, &at_once) in workers.iter().enumerate().cycle() {
        if next == batches {
            break;
        }
        let end = batches.min(next + at_once.min(even));
        shares.push((device, next..end));
        next = end;
    }
    shares
}

#[cfg(test)]
mod tests {
    use softshard_losses::DistillLoss;
    use softshard_model::Arrangement;

    use super::*;
    use crate::{
        batches::tests::{batch, decoder},
        config::Checkpointing,
    };

    /// What a GPU beside another one does, on the CPU: weights of its own, and values that come with each step.
    #[test]
    fn a_device_with_memory_of_its_own_finds_the_same_gradients() {
        let first = decoder(true);
        let device = first.device().clone();
        let step = Arc::new(Step {
            batches: (0..3).map(|_| batch(Arrangement::Padded)).collect(),
            loss: DistillLoss::forward_kl(0.7, 64),
            checkpointing: Checkpointing::None,
            dropout_seeds: vec![0, 1, 2],
            divide_by: 100.0,
            fitting: Arc::default(),
        });
        let other =
            |load: fn() -> Result<Decoder>| vec![Other::start(&first, &device, false, move |_| load())];
        let mut broken = Replicas {
            others: other(|| Err(anyhow!("no weights"))),
            workers: vec![1, 1],
            first: first.clone(),
        };
        let error = broken.sum(&step).err().expect("the other device has no weights");
        assert!(error.to_string().contains("no weights"), "{error}");

        let mut replicas =
            Replicas { others: other(|| Ok(decoder(true))), workers: vec![1, 1], first: first.clone() };
        for learnt in [0.0, 0.1] {
            for (_, parameter) in replicas.first.parameters_mut() {
                *parameter = Tensor::from_inner(parameter.clone().inner() + learnt).require_grad();
            }
            let mut alone = Pass::default();
            step.passes(&replicas.first, 0..3)
                .expect("resident")
                .into_iter()
                .for_each(|pass| alone.add(pass));
            let found = replicas.sum(&step).expect("resident");
            assert_eq!(found.loss.to_bits(), alone.loss.to_bits());
            assert_eq!(found.gradients.len(), alone.gradients.len());
            for (found, alone) in found.gradients.into_iter().zip(alone.gradients) {
                assert_eq!(found.into_data(), alone.into_data());
            }
        }
    }

    #[test]
    fn micro_batches_are_dealt_in_their_order() {
        assert_eq!(deal(3, &[1]), [(0, 0..1), (0, 1..2), (0, 2..3)]);
        assert_eq!(deal(4, &[3]), [(0, 0..3), (0, 3..4)]);
        assert_eq!(deal(3, &[1, 1]), [(0, 0..1), (1, 1..2), (0, 2..3)]);
        // No device takes what another would wait for.
        assert_eq!(deal(4, &[8, 8]), [(0, 0..2), (1, 2..4)]);
        assert_eq!(deal(2, &[8, 8, 8]), [(0, 0..1), (1, 1..2)]);
        assert_eq!(deal(7, &[2, 1]), [(0, 0..2), (1, 2..3), (0, 3..5), (1, 5..6), (0, 6..7)]);
        assert_eq!(deal(0, &[1]), []);
    }
}
