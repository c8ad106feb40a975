//! The types of `cubecl-llvm` that `cubecl-cuda` names, without LLVM: see README.md.

use core::convert::Infallible;
use core::ffi::c_char;
use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_core::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;

/// Where LLVM would start.
fn absent() -> ! {
    panic!(
        "this build has no LLVM: kernels are compiled as CUDA C++ (build with the feature `cubecl/cuda-cpp`, \
         as the feature `cuda` of softshard-cli does)"
    )
}

/// What the NVPTX target names.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use core::fmt;

        /// The PTX version that LLVM would write: there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None: NVRTC chooses.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What all targets share.
pub mod shared {
    /// What a device may advertise when LLVM compiles for it.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The target whose features are narrowed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Called only where LLVM compiles.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {
            crate::absent()
        }
    }
}

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlvmTarget {
    /// NVIDIA's.
    Nvptx,
}

/// The compiler that is not there.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// Options of the compiler that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Never set.
    pub arch: Option<Infallible>,
    /// The device's architecture.
    pub sm_arch: Option<SmArch>,
    /// Never set.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// Whether scalars are kernel parameters.
    pub grid_constants: bool,
}

/// A compiled module: never made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NvptxModule {
    /// PTX.
    pub ptx: Vec<c_char>,
    /// The kernel's symbol.
    pub entrypoint: String,
    /// For logs and cache keys.
    pub ir: String,
    /// Bytes for each launch.
    pub shared_memory_size: usize,
    /// Which buffers are read and written.
    pub io: Vec<BufferIOAttr>,
}

/// What the compiler would make.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PlironArtifact {
    /// For NVIDIA.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        formatter.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        absent()
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
