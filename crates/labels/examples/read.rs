//! Reads labels that you were given: `cargo run --example read FOLDER [KEY]`.
//!
//! Opening checks every hash, so that a damaged file is named before anything is trained on it.

use softshard_labels::{LabelDataset, LabelGroup};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: read FOLDER [KEY]")?;
    let dataset = LabelDataset::open(&folder)?;
    let manifest = dataset.manifest();
    println!("{} sequences, {} labelled tokens", manifest.rows, manifest.labelled_tokens);

    // By key: in any order, as often as you like. Batches are cut by what the index knows, before anything is decoded.
    let key = arguments.next().map_or_else(|| Ok(dataset.key(0)), |text| text.parse())?;
    let row = dataset.find(&key).ok_or("no such sequence")?;
    let (tokens, labelled) = dataset.token_counts(row);
    println!("sequence {key}: {tokens} tokens, {labelled} labelled");
    let labels = dataset.get(&key)?;
    for (entries, tail) in labels.entries().zip(&labels.tail_log_mass) {
        let best = entries.token_ids.iter().zip(entries.log_probs).next();
        let best = best.map(|(id, log_prob)| format!("{id} ({:.4}), ", log_prob.exp())).unwrap_or_default();
        let (position, count) = (entries.position, entries.token_ids.len());
        println!("token {position}: {best}{count} entries, {:.4} beyond them", tail.exp());
    }

    // All of it: row group by row group, into memory that is used again.
    let mut group = LabelGroup::default();
    let mut entries = 0;
    for index in 0..dataset.groups() {
        dataset.decode_group(index, &mut group)?;
        entries += (0..group.len()).map(|row| group.row(row).token_ids.len()).sum::<usize>();
    }
    println!("{entries} entries");
    Ok(())
}
