//! `package`: what remote tasks would take along. As with the peer, what it tells goes to stderr.

use std::path::Path;

use ferroflow_compute::remote::{Package, PackageFault, package};

use crate::arguments::PackageCommand;
use crate::context::Context;
use crate::remote::package_sources;
use crate::report::Failure;

pub fn package(context: &Context, command: PackageCommand) -> Result<(), Failure> {
    match command {
        PackageCommand::List { archive: false } => list_files(context),
        PackageCommand::List { archive: true } => {
            for name in &build(context)?.files {
                errln!("{}", name.display());
            }
            Ok(())
        }
        PackageCommand::Info => {
            let package = build(context)?;
            errln!("Files: {}", package.files.len());
            errln!("Size: {} KB", package.compressed().len().div_ceil(1000));
            errln!("Hash: {}", package.hash);
            errln!("Place in a remote datastore: {}", package.key());
            Ok(())
        }
        PackageCommand::Save { path } => save(&build(context)?, &context.cwd.join(path)),
    }
}

fn build(context: &Context) -> Result<Package, Failure> {
    let package = Package::build(&package_sources(context)?)?;
    for warning in &package.warnings {
        errln!("Warning: {warning}.");
    }
    Ok(package)
}

fn list_files(context: &Context) -> Result<(), Failure> {
    let mut warnings = Vec::new();
    let files = package::list(&package_sources(context)?, &mut warnings)?;
    for path in files.iter().filter_map(|file| file.source()) {
        errln!("{}", path.display());
    }
    for warning in &warnings {
        errln!("Warning: {warning}.");
    }
    Ok(())
}

fn save(package: &Package, path: &Path) -> Result<(), Failure> {
    std::fs::write(path, package.compressed()).map_err(|error| {
        Failure::new("Code package error", format!("cannot write the code package `{}`: {error}", path.display()))
    })?;
    errln!("Code package saved in {}.", path.display());
    Ok(())
}

impl From<PackageFault> for Failure {
    fn from(fault: PackageFault) -> Self {
        Self::new("Code package error", fault.to_string())
    }
}
