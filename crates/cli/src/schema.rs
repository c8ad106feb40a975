//! `softshard schema`: what is published about our files.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use fs_err as fs;

use crate::recipe::Recipe;

/// Arguments of `schema`.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Schema {
    /// Which one, as labels.parquet, labels-manifest, plan or recipe; all are listed where there is no such one
    name: Option<String>,
    /// Write all into a folder
    #[arg(long, value_name = "DIR")]
    pub(crate) all: Option<PathBuf>,
}

/// A schema that is not there: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("schema `{found}`: expected one of {expected}")]
pub(crate) struct UnknownSchema {
    found: String,
    expected: String,
}

/// Prints one schema, or writes all.
///
/// # Errors
/// [`UnknownSchema`]; a folder that cannot be written.
pub(crate) fn run(Schema { name, all }: &Schema) -> Result<()> {
    let schemas = schemas();
    if let Some(folder) = all {
        return write(&schemas, folder);
    }
    let name = name.as_deref().unwrap_or_default();
    let Some(schema) = schemas.iter().find(|schema| schema.name == name) else {
        let names: Vec<&str> = schemas.iter().map(|schema| schema.name).collect();
        return Err(UnknownSchema { found: name.to_owned(), expected: names.join(", ") }.into());
    };
    print!("{}", schema.text);
    Ok(())
}

/// Those of the formats, of recipes, and of the rows of results.
fn schemas() -> Vec<softshard_labels::Schema> {
    let mut schemas = softshard_labels::Schema::all();
    schemas.push(softshard_labels::Schema::read::<Recipe>("recipe"));
    schemas.push(softshard_labels::Schema::read::<softshard_evaluate::Row>("evaluation-row"));
    schemas.push(softshard_labels::Schema::read::<softshard_evaluate::ChoiceRow>("evaluation-choice-row"));
    schemas.push(softshard_labels::Schema::read::<softshard_evaluate::SummaryRow>("evaluation-summary-row"));
    schemas
}

fn write(schemas: &[softshard_labels::Schema], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for schema in schemas {
        fs::write(folder.join(&schema.file), &schema.text)?;
    }
    println!("{} schemas: {}", schemas.len(), folder.display());
    Ok(())
}
