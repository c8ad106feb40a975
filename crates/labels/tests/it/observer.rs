//! What is done on label datasets is seen to its end by the observer that was passed, and by no other.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;

use softshard_labels::{
    LabelDataset, LabelPlan, Observer, Progress, ReadLimits, export_hf, export_jsonl, import_jsonl, merge,
    verify,
};

use crate::common::{TOP_4, plan, write_dataset};

static GO: AtomicBool = AtomicBool::new(false);

/// Stage, done, total, unit.
type Said = (String, u64, u64, String);

#[derive(Default)]
struct Seen(Mutex<Vec<Said>>);

impl Observer for Seen {
    fn progress(&self, now: &Progress<'_>) {
        let said = (now.stage.to_owned(), now.done, now.total, now.unit.to_owned());
        self.0.lock().unwrap().push(said);
    }
}

/// Everything that has progress, over a dataset of so many rows in shards of three; what was said in order of what was done.
fn at_work(rows: u64) -> Vec<Said> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_dataset(&path("labels"), &plan(LabelPlan::ranges(rows, 3), TOP_4));
    let (dataset, seen) = (LabelDataset::open(path("labels")).unwrap(), Seen::default());
    verify(path("labels"), &ReadLimits::default(), &GO, &seen).unwrap();
    merge(&path("merged"), &[path("labels")], &GO, &seen).unwrap();
    export_hf(&dataset, &path("rows"), &GO, &seen).unwrap();
    export_jsonl(&dataset, &path("labels.jsonl"), &GO, &seen).unwrap();
    import_jsonl(&path("back"), &path("labels.jsonl"), None, &GO, &seen).unwrap();
    seen.0.into_inner().unwrap()
}

#[test]
fn every_piece_of_work_is_seen_to_its_end_by_its_own_observer() {
    thread::scope(|scope| {
        for rows in [7, 12, 31] {
            scope.spawn(move || {
                let said = at_work(rows);
                let ends: Vec<&Said> = said.iter().filter(|(_, done, total, _)| done == total).collect();
                let end =
                    |stage: &str, total: u64, unit: &str| (stage.to_owned(), total, total, unit.to_owned());
                let expected = [
                    end("verify", rows, "rows"),
                    end("merge", rows.div_ceil(3), "shards"),
                    end("export", rows, "rows"),
                    end("export", rows, "rows"),
                    end("check", rows, "rows"),
                    end("import", rows, "rows"),
                ];
                assert_eq!(ends, expected.iter().collect::<Vec<_>>());
                // Each row of an import, each row group of an export.
                let of = |stage: &str| said.iter().filter(|said| said.0 == stage).count() as u64;
                assert_eq!(["check", "import", "merge"].map(of), [rows, rows, rows.div_ceil(3)]);
            });
        }
    });
}
