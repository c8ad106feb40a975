//! The teacher on its devices: loaded when it is first needed, and then for all datasets that it labels.

use std::{path::Path, thread, time::Instant};

use anyhow::Result;
use burn::tensor::Device;
use softshard_labels::{Alteration, Error, SequenceDataset, TeacherIdentity};
use softshard_model::{DecoderConfig, adapter_blake3, config_blake3, weights_blake3};

use crate::{calibration, config::TeacherConfig, labeller::Labeller};

/// A teacher, which need not be in memory yet.
pub struct Teacher<'a> {
    pub(crate) config: &'a TeacherConfig,
    /// Each with the batches that are computed at a time on it.
    devices: &'a [(Device, usize)],
    labellers: Vec<Labeller>,
    identity: Option<TeacherIdentity>,
    /// What a calibration found, now or when the plan of an earlier dataset was made: one teacher labels all of them.
    fitted: Option<f64>,
    load_seconds: f64,
}

impl<'a> Teacher<'a> {
    /// A teacher that will label on all of `devices`, each with a copy of the weights, and with the number of batches that are
    /// computed at a time on it: as many as a CPU has cores, 1 on a GPU. Nothing is read yet.
    ///
    /// # Panics
    /// If there is no device.
    pub fn new(config: &'a TeacherConfig, devices: &'a [(Device, usize)]) -> Self {
        assert!(!devices.is_empty(), "a teacher labels on a device");
        Self { config, devices, labellers: Vec::new(), identity: None, fitted: None, load_seconds: 0.0 }
    }

    /// The teacher on each of its devices; loads it now if that was not done.
    pub(crate) fn labellers(&mut self) -> Result<&mut [Labeller]> {
        if self.labellers.is_empty() {
            let began = Instant::now();
            let load = |(device, workers): &(Device, usize)| Labeller::load(self.config, device, *workers);
            self.labellers = match self.devices {
                [alone] => vec![load(alone)?],
                devices => thread::scope(|scope| {
                    let threads: Vec<_> =
                        devices.iter().map(|device| scope.spawn(move || load(device))).collect();
                    let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
                    joined
                        .map(|loaded| loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                        .collect::<Result<_>>()
                })?,
            };
            self.load_seconds += began.elapsed().as_secs_f64();
        }
        Ok(&mut self.labellers)
    }

    /// Seconds of reading, hashing and loading since this was last asked.
    pub(crate) fn take_load_seconds(&mut self) -> f64 {
        std::mem::take(&mut self.load_seconds)
    }

    /// Who the teacher is; reads its files once to hash them. Where a temperature is to be fitted, it is the one of the plan that
    /// is there, or else it is fitted now.
    pub(crate) fn identity(
        &mut self,
        planned: Option<&TeacherIdentity>,
        held_out: Option<&Path>,
    ) -> Result<TeacherIdentity> {
        if self.identity.is_none() {
            let began = Instant::now();
            self.identity = Some(of_files(self.config)?);
            self.load_seconds += began.elapsed().as_secs_f64();
        }
        let scale = match (self.config.calibration, planned.map(|identity| identity.altered.as_ref())) {
            (None, _) => None,
            (Some(_), Some(Some(planned))) if planned.is_calibrated => Some(planned.logit_scale),
            // Another plan, which will be refused: nothing need be fitted to say so.
            (Some(_), Some(_)) => Some(1.0),
            (Some(_), None) if self.fitted.is_some() => self.fitted,
            (Some(_), None) => {
                let path = held_out.filter(|path| path.exists()).ok_or_else(|| {
                    let hint = "hold rows out with `data.split.valid_rows`, or remove `teacher.calibration`";
                    Error::bad("`teacher.calibration`", "sequences that were held out", "none").hint(hint)
                })?;
                let held_out = SequenceDataset::open(path)?;
                Some(1.0 / calibration::fit(&self.labellers()?[0], &held_out)?)
            }
        };
        self.fitted = scale;
        let altered = altered(self.config, scale);
        // Set above.
        Ok(TeacherIdentity { altered, ..self.identity.clone().expect("the files were hashed") })
    }
}

/// What a recipe does to the teacher's distributions, with the scale that was fitted if one was.
pub(crate) fn altered(config: &TeacherConfig, fitted: Option<f64>) -> Option<Alteration> {
    let logit_scale = fitted.unwrap_or(config.logit_scale);
    let altered =
        Alteration { logit_scale, is_calibrated: fitted.is_some(), label_noise: config.label_noise };
    let unaltered = Alteration { logit_scale: 1.0, is_calibrated: false, label_noise: 0.0 };
    (altered != unaltered).then_some(altered)
}

/// Who the teacher is before anything is altered.
fn of_files(teacher: &TeacherConfig) -> Result<TeacherIdentity> {
    let model = DecoderConfig::load(&teacher.model)?;
    Ok(TeacherIdentity {
        config_blake3: config_blake3(&teacher.model)?,
        weights_blake3: weights_blake3(&teacher.model)?,
        adapter_blake3: teacher.adapter.as_deref().map(adapter_blake3).transpose()?,
        dtype: teacher.load_options().dtype(),
        vocab_size: u32::try_from(model.vocab_size)?,
        altered: None,
    })
}
