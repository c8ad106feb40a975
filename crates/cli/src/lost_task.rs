//! What happens when a GPU's own thread loses a task: a kernel that could not be generated, say.
//!
//! Burn's runtime (`cubecl-common`) catches a panic there, logs it, and goes on with memory that nobody wrote to. Whatever is
//! computed from then on may be wrong without a sign, so the process is to end; what it had committed stays.

use std::{fmt::Debug, thread};

use tracing::{Event, Level, Subscriber, field::Field, field::Visit};
use tracing_subscriber::layer::{Context, Layer};

/// Calls its function with the reason of each lost task.
pub(crate) struct LostTasks<F>(pub(crate) F);

impl<S: Subscriber, F: Fn(String) + 'static> Layer<S> for LostTasks<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Records of the crate `log` come as events of this target, with their own as a field.
        if *event.metadata().level() == Level::WARN && event.metadata().target() == "log" {
            let mut record = Record::default();
            event.record(&mut record);
            if record.is_lost_task() {
                (self.0)(record.message);
            }
        }
    }
}

/// Ends the process by `exit`, on another thread: this one is the device's, which nobody may get a result of any more.
pub(crate) fn end(exit: impl FnOnce() + Send + 'static) -> ! {
    thread::spawn(exit);
    loop {
        thread::park();
    }
}

#[derive(Default)]
struct Record {
    target: String,
    message: String,
}

impl Record {
    /// A task that somebody waits for fails where they wait, and says so in other words.
    fn is_lost_task(&self) -> bool {
        self.target.starts_with("cubecl_common::device") && self.message.starts_with("CallError(")
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
