// Crops cut out of a frame on the device, and blocks moved between device addresses. Plain CUDA C++; a test compiles it
// for the CPU as well. A frame is uploaded once however many people are in it.

// One thread a crop pixel: bilinear, black outside, as `streampose.geometry.cut` (whose OpenCV rounds weights to 1/32).
//
// frame     (frame_height, frame_width, 3) uint8 BGR.
// inverses  (count, 2, 3): crop pixels to frame pixels, continuous: (0, 0) is the corner of the first pixel.
// crops     (count, height, width, 3) uint8 BGR, written.
extern "C" __global__ void cut_crops(const unsigned char* frame, int frame_height, int frame_width,
                                     const float* inverses, unsigned char* crops, int count, int height, int width) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  const int crop = blockIdx.z;
  if (x >= width || y >= height || crop >= count) return;
  const float* a = inverses + 6 * crop;
  const float from_x = a[0] * (x + 0.5f) + a[1] * (y + 0.5f) + a[2] - 0.5f;
  const float from_y = a[3] * (x + 0.5f) + a[4] * (y + 0.5f) + a[5] - 0.5f;
  unsigned char* out = crops + 3 * ((static_cast<long long>(crop) * height + y) * width + x);
  // written so that a position that is not a number is outside, too
  if (!(from_x > -1.0f && from_y > -1.0f && from_x < frame_width && from_y < frame_height)) {
    out[0] = out[1] = out[2] = 0;
    return;
  }
  const int left = static_cast<int>(floorf(from_x)), top = static_cast<int>(floorf(from_y));
  const float right_share = from_x - left, bottom_share = from_y - top;
  float sum[3] = {0.0f, 0.0f, 0.0f};
  for (int corner = 0; corner < 4; ++corner) {
    const int px = left + (corner & 1), py = top + (corner >> 1);
    if (px < 0 || py < 0 || px >= frame_width || py >= frame_height) continue;
    const float weight = ((corner & 1) ? right_share : 1.0f - right_share) * ((corner >> 1) ? bottom_share : 1.0f - bottom_share);
    const unsigned char* pixel = frame + 3 * (static_cast<long long>(py) * frame_width + px);
    for (int channel = 0; channel < 3; ++channel) sum[channel] += weight * pixel[channel];
  }
  for (int channel = 0; channel < 3; ++channel) out[channel] = static_cast<unsigned char>(sum[channel] + 0.5f);
}

// Copies `count` blocks of `words` 4-byte words from addresses to addresses: features into and out of their slots.
extern "C" __global__ void move_blocks(const unsigned long long* from, const unsigned long long* to, int words, int count) {
  const int word = blockIdx.x * blockDim.x + threadIdx.x;
  const int block = blockIdx.y;
  if (word >= words || block >= count) return;
  reinterpret_cast<unsigned int*>(to[block])[word] = reinterpret_cast<const unsigned int*>(from[block])[word];
}
