//! `#[tidemill::job]`: gives a job function the exports of a Tidemill module, and changes nothing else. Outside
//! of Wasm it emits the function alone, so that a job builds and is tested like any other function.

use proc_macro::TokenStream;
use quote::quote;
use syn::{FnArg, ItemFn, parse_macro_input};

/// Makes a function the job of its module: `fn name(job: &mut Job)`, returning nothing or a `Result<(), E>` whose error
/// can be displayed. A module has one job.
#[proc_macro_attribute]
pub fn job(arguments: TokenStream, function: TokenStream) -> TokenStream {
    let function = parse_macro_input!(function as ItemFn);
    let arguments = proc_macro2::TokenStream::from(arguments);
    match check(&arguments, &function) {
        Ok(()) => expand(&function).into(),
        Err(error) => {
            let error = error.into_compile_error();
            quote!(#error #function).into()
        }
    }
}

/// Says what is wrong where the exports would only lead to a puzzling type error.
fn check(arguments: &proc_macro2::TokenStream, function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if !arguments.is_empty() {
        return Err(syn::Error::new_spanned(
            arguments,
            "`#[tidemill::job]` takes no arguments: name the job with `job.name(…)`",
        ));
    }
    if let Some(asyncness) = &signature.asyncness {
        return Err(syn::Error::new_spanned(
            asyncness,
            "a job function only describes the job and cannot be async",
        ));
    }
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            &signature.generics,
            "a job function cannot be generic: nobody would choose its types",
        ));
    }
    let takes_a_job =
        matches!(signature.inputs.first(), Some(FnArg::Typed(_))) && signature.inputs.len() == 1;
    if !takes_a_job {
        return Err(syn::Error::new_spanned(
            signature,
            "a job function takes one argument, `job: &mut Job`; parameters come from `job.param(…)`",
        ));
    }
    Ok(())
}

fn expand(function: &ItemFn) -> proc_macro2::TokenStream {
    let job = &function.sig.ident;
    let name = job.to_string().trim_start_matches("r#").replace('_', "-");
    quote! {
        #function

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_abi_version() -> u32 {
                ::tidemill::rt::abi_version()
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_allocate(len: u32) -> u32 {
                ::tidemill::rt::allocate(len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_describe(ptr: u32, len: u32) -> u64 {
                ::tidemill::rt::describe(#job, #name, ptr, len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_open(ptr: u32, len: u32) -> u64 {
                ::tidemill::rt::open(#job, #name, ptr, len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_process(port: u32, split: u64, ptr: u32, len: u32, now_ms: u64) -> u64 {
                ::tidemill::rt::process(port, split, ptr, len, now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_resume(now_ms: u64) -> u64 {
                ::tidemill::rt::resume(now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_poll(now_ms: u64) -> u64 {
                ::tidemill::rt::poll(now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_watermark(port: u32, timestamp_ms: i64, now_ms: u64) -> u64 {
                ::tidemill::rt::watermark(port, timestamp_ms, now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_timer(now_ms: u64) -> u64 {
                ::tidemill::rt::timer(now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_finish(now_ms: u64) -> u64 {
                ::tidemill::rt::finish(now_ms)
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_flush() {
                ::tidemill::rt::flush();
            }
            #[unsafe(no_mangle)]
            extern "C" fn tidemill_records(which: u32) -> i64 {
                ::tidemill::rt::records(which)
            }
        };
    }
}
