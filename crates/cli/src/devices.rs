//! Several places where tensors live, one for each copy of a model.

use std::{num::NonZero, thread};

use burn::tensor::Device;

use crate::device::{self, DeviceError};

/// All devices that `names` names: `cuda:0`, `cuda` for all GPUs of this machine, or several names with commas between them, as
/// `cuda:0,1`. Every name is a device of its own, `cpu,cpu` two that share the processor. Each comes with the batches that are
/// computed at a time on it: devices that share a processor share its cores.
///
/// # Errors
/// As [`device::open`].
pub(crate) fn open(names: &str) -> Result<Vec<(Device, usize)>, DeviceError> {
    let devices = named(names)?;
    let sharing = |device: &Device| devices.iter().filter(|other| *other == device).count();
    let count = |device: &Device| (workers(device) / sharing(device)).max(1);
    let counts: Vec<usize> = devices.iter().map(count).collect();
    Ok(devices.into_iter().zip(counts).collect())
}

/// Batches at a time: a CPU's cores each compute one, and a GPU computes one with all it has.
pub(crate) fn workers(device: &Device) -> usize {
    if *device == Device::flex() { thread::available_parallelism().map_or(1, NonZero::get) } else { 1 }
}

fn named(names: &str) -> Result<Vec<Device>, DeviceError> {
    let names = if names == "cuda" { all_gpus()? } else { names.to_owned() };
    let is_index = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut kind = None;
    names
        .split(',')
        .map(|name| {
            let full = match &kind {
                Some(kind) if is_index(name) => format!("{kind}:{name}"),
                _ => name.to_owned(),
            };
            kind = full.split_once(':').map(|(kind, _)| kind.to_owned());
            device::open(&full)
        })
        .collect()
}

/// Names of all GPUs, of which there is one at least.
#[cfg(feature = "cuda")]
fn all_gpus() -> Result<String, DeviceError> {
    let count = Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len();
    let names: Vec<String> = (0..count.max(1)).map(|index| format!("cuda:{index}")).collect();
    Ok(names.join(","))
}

#[cfg(not(feature = "cuda"))]
fn all_gpus() -> Result<String, DeviceError> {
    Ok("cuda:0".to_owned()) // which says that this build has none
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_are_several_devices() {
        assert_eq!(named("cpu").map(|devices| devices.len()).ok(), Some(1));
        assert_eq!(named("cpu,cpu").ok(), Some(vec![Device::flex(), Device::flex()]));
        let cores = workers(&Device::flex());
        let counts =
            |names: &str| open(names).expect("devices").iter().map(|(_, workers)| *workers).sum::<usize>();
        assert_eq!(counts("cpu"), cores);
        assert!(counts("cpu,cpu,cpu") <= cores.max(3));
        for names in ["cpu,", "0,1", "cpu,1", ",cpu"] {
            let error = open(names).expect_err("refused").to_string();
            assert!(error.contains("expected `cpu`, `cuda:<index>` or `wgpu:<index>`"), "{names}: {error}");
        }
        let error = open("cuda:60000,60001").expect_err("refused").to_string();
        assert!(error.starts_with("device `cuda:60000`: "), "{error}");
    }
}
