//! A large image is written without a second copy of it. Alone in its binary, since it looks at the whole process.

mod common;

use std::sync::Arc;

use common::{ID, files, noise, read};
use tidemill_protocol::Image;
use tidemill_protocol::image::StoredCapture;
use tidemill_storage::ImageChain;

const IMAGE_BYTES: usize = 256 << 20;

/// The most memory this process has ever had, in bytes.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn a_large_image_is_written_and_read_without_a_second_copy() {
    let (_directory, store) = files();
    let capture = Arc::new(StoredCapture::from(Image {
        memory: noise(1, IMAGE_BYTES),
        ..Image::default()
    }));
    let before = peak_bytes();
    let mut chain = ImageChain::new();
    let written = store.write_capture(ID, &capture, &mut chain).await.unwrap();
    let writing = peak_bytes() - before;
    assert!(
        writing < IMAGE_BYTES / 2,
        "writing took {writing} bytes more"
    );

    let read = read(&store, &written.manifest).await.unwrap();
    let reading = peak_bytes() - before;
    assert!(
        reading < IMAGE_BYTES + IMAGE_BYTES / 2,
        "reading took {reading} bytes more"
    );
    assert!(read.memory == capture.bytes);
}
