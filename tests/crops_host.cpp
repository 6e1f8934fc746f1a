// Runs the crop kernels on the CPU, one thread after the other: program OUT FRAME HEIGHT WIDTH INVERSES COUNT H W, and
// program OUT moves IN WORDS COUNT, which reverses the order of the blocks. Every buffer is as large as it must be.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#define __global__
struct Index {
  int x, y, z;
};
static Index blockIdx, threadIdx, blockDim;
#include "kernel.cuh"

static std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <class Run>
static void launch(Index grid, Index block, Run run) {
  blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
          for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) run();
}

int main(int, char** argument) {
  std::ofstream out(argument[1], std::ios::binary);
  if (std::string(argument[2]) == "moves") {
    const std::vector<char> in = read(argument[3]);
    const int words = std::atoi(argument[4]), count = std::atoi(argument[5]);
    std::vector<unsigned int> from(in.size() / 4), to(in.size() / 4);
    std::copy(in.begin(), in.end(), reinterpret_cast<char*>(from.data()));
    std::vector<unsigned long long> sources, targets;
    for (int i = 0; i < count; ++i) {
      sources.push_back(reinterpret_cast<unsigned long long>(from.data() + i * words));
      targets.push_back(reinterpret_cast<unsigned long long>(to.data() + (count - 1 - i) * words));
    }
    launch({(words + 255) / 256, count, 1}, {256, 1, 1}, [&] { move_blocks(sources.data(), targets.data(), words, count); });
    out.write(reinterpret_cast<const char*>(to.data()), static_cast<std::streamsize>(to.size() * 4));
    return 0;
  }
  const std::vector<char> frame = read(argument[2]), numbers = read(argument[5]);
  const int frame_height = std::atoi(argument[3]), frame_width = std::atoi(argument[4]);
  const int count = std::atoi(argument[6]), height = std::atoi(argument[7]), width = std::atoi(argument[8]);
  std::vector<float> inverses(numbers.size() / 4);
  std::copy(numbers.begin(), numbers.end(), reinterpret_cast<char*>(inverses.data()));
  std::vector<unsigned char> crops(3u * static_cast<unsigned>(count * height * width), 77);
  launch({(width + 31) / 32, (height + 7) / 8, count}, {32, 8, 1}, [&] {
    cut_crops(reinterpret_cast<const unsigned char*>(frame.data()), frame_height, frame_width, inverses.data(), crops.data(),
              count, height, width);
  });
  out.write(reinterpret_cast<const char*>(crops.data()), static_cast<std::streamsize>(crops.size()));
  return 0;
}
