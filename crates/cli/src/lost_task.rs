//! What happens when a GPU's own thread loses a task: a kernel that could not be generated, say.
//!
//! Burn's runtime (`cubecl-common`) catches a panic there, logs it, and goes on with memory that nobody wrote to. Whatever is
//! computed from then on may be wrong without a sign, so the process ends; what it had committed stays.

use std::fmt::Debug;

use tracing::{Event, Subscriber, field::Field, field::Visit};
use tracing_subscriber::layer::{Context, Layer};

/// Calls its function with the reason of each lost task.
pub(crate) struct LostTasks(pub(crate) fn(&str));

impl LostTasks {
    /// Ends the process with the exit code of a device.
    pub(crate) fn end_the_process() -> Self {
        Self(|reason| {
            crate::progress::say(&format!(
                "error: device: a task of its thread was lost, and what it was to compute with it: {reason}\n\
                 hint: finished work is kept; the lines above name the kernel, which this device or its driver may not know"
            ));
            std::process::exit(i32::from(crate::exit::BAD_DEVICE));
        })
    }
}

impl<S: Subscriber> Layer<S> for LostTasks {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Records of the crate `log` come as events of this target, with their own as a field.
        if event.metadata().target() == "log" {
            let mut record = Record::default();
            event.record(&mut record);
            if let Some(reason) = record.lost_task() {
                (self.0)(reason);
            }
        }
    }
}

#[derive(Default)]
struct Record {
    target: String,
    message: String,
}

impl Record {
    /// Why a task was lost, if this says so. A task that somebody waits for fails where they wait: another message.
    fn lost_task(&self) -> Option<&str> {
        let is_device = self.target.starts_with("cubecl_common::device");
        is_device.then_some(&*self.message).filter(|message| message.starts_with("CallError("))
    }
}

impl Visit for Record {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            value.clone_into(&mut self.target);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use std::sync::Mutex;

    use burn::tensor::{Device, DeviceKind, FloatDType, Tensor};
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

    use super::*;

    static LOST: Mutex<Vec<String>> = Mutex::new(Vec::new());

    /// The runtime's words are its own: this fails if they change.
    #[test]
    fn a_kernel_that_a_device_does_not_know_is_no_silent_garbage() {
        tracing_subscriber::registry()
            .with(LostTasks(|reason| LOST.lock().expect("no panic holds it").push(reason.to_owned())))
            .init();
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let sum = |x: Tensor<1>| x.add_scalar(1.0).into_data().convert::<f32>();
        sum(Tensor::ones([8], &device));
        assert!(LOST.lock().expect("no panic holds it").is_empty(), "what works is no fault");
        // WGSL has no bf16.
        sum(Tensor::<1>::ones([8], &device).cast(FloatDType::BF16).cast(FloatDType::F32));
        let lost = LOST.lock().expect("no panic holds it");
        assert!(lost.iter().any(|reason| reason.contains("bf16")), "{lost:?}");
    }
}
