// Runs a TensorRT engine that vitslim built, with its plugin inside (--trusted) or beside it (--plugins). No Python.
//
//   g++ -std=c++17 -O2 trt_infer.cpp -o trt_infer -I$TENSORRT/include -I/usr/local/cuda/include
//       -L$TENSORRT/lib -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./trt_infer model.engine --trusted --images images.f32 --batch 8 --labels labels.txt
//
// images.f32 holds float32 images one after another, each C x H x W and normalised as model.engine.json says. With NumPy:
//   images.astype("float32").tofile("images.f32")
// Without --images it runs a batch of zeros. Written against TensorRT 10.12 to 11.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Options {
    std::string engine, plugins, images, labels;
    bool trusted = false;
    int64_t batch = 1;
};

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) {
            std::cerr << "TensorRT: " << message << '\n';
        }
    }
};

void check(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

void require(bool holds, std::string const& otherwise) {
    if (!holds) {
        throw std::runtime_error(otherwise);
    }
}

// Memory on the GPU, freed when it goes out of scope.
class DeviceBuffer {
public:
    explicit DeviceBuffer(size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    ~DeviceBuffer() { cudaFree(data_); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    void* get() const { return data_; }

private:
    void* data_ = nullptr;
};

class Stream {
public:
    Stream() { check(cudaStreamCreate(&stream_), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
    cudaStream_t get() const { return stream_; }

private:
    cudaStream_t stream_ = nullptr;
};

Options parse(int argc, char** argv) {
    Options options;
    for (int index = 1; index < argc; ++index) {
        std::string const word = argv[index];
        auto const value = [&]() -> std::string {
            require(index + 1 < argc, word + " wants a value");
            return argv[++index];
        };
        if (word == "--plugins") {
            options.plugins = value();
        } else if (word == "--images") {
            options.images = value();
        } else if (word == "--labels") {
            options.labels = value();
        } else if (word == "--trusted") {
            options.trusted = true;
        } else if (word == "--batch") {
            options.batch = std::atoll(value().c_str());
        } else {
            require(options.engine.empty() && word.rfind("--", 0) != 0, "unknown option " + word);
            options.engine = word;
        }
    }
    require(!options.engine.empty() && options.batch > 0,
            "usage: trt_infer ENGINE [--trusted] [--plugins LIBRARY] [--images FILE] [--batch N] [--labels FILE]");
    return options;
}

std::vector<char> readFile(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<std::string> readLines(std::string const& path) {
    std::vector<std::string> lines;
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        lines.push_back(line);
    }
    return lines;
}

int64_t volume(nvinfer1::Dims const& shape) {
    return std::accumulate(shape.d, shape.d + shape.nbDims, int64_t{1}, std::multiplies<int64_t>());
}

// The one tensor of a direction, which vitslim's engines keep in float32 unless they take bytes.
std::string tensorOf(nvinfer1::ICudaEngine const& engine, nvinfer1::TensorIOMode mode) {
    std::string found;
    for (int32_t index = 0; index < engine.getNbIOTensors(); ++index) {
        char const* name = engine.getIOTensorName(index);
        if (engine.getTensorIOMode(name) == mode) {
            require(found.empty(), "the engine has more than one input or output");
            found = name;
        }
    }
    require(!found.empty(), "the engine has no input or no output");
    require(engine.getTensorDataType(found.c_str()) == nvinfer1::DataType::kFLOAT,
            "'" + found + "' is not float32; this program takes float32 only");
    return found;
}

std::vector<float> readImages(std::string const& path, size_t values) {
    std::vector<float> images(values, 0.0F);
    if (path.empty()) {
        return images;
    }
    std::vector<char> const bytes = readFile(path);
    require(bytes.size() >= values * sizeof(float),
            path + " holds " + std::to_string(bytes.size()) + " bytes, the batch needs " +
                std::to_string(values * sizeof(float)));
    std::copy_n(bytes.data(), values * sizeof(float), reinterpret_cast<char*>(images.data()));
    return images;
}

void printBest(std::vector<float> const& outputs, int64_t batch, std::vector<std::string> const& labels) {
    auto const classes = static_cast<int64_t>(outputs.size()) / batch;
    int64_t const shown = std::min<int64_t>(5, classes);
    for (int64_t image = 0; image < batch; ++image) {
        float const* row = outputs.data() + image * classes;
        std::vector<int64_t> order(static_cast<size_t>(classes));
        std::iota(order.begin(), order.end(), int64_t{0});
        std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                          [row](int64_t left, int64_t right) { return row[left] > row[right]; });
        std::cout << "image " << image << ':';
        for (int64_t rank = 0; rank < shown; ++rank) {
            auto const best = static_cast<size_t>(order[static_cast<size_t>(rank)]);
            std::cout << "  " << (best < labels.size() ? labels[best] : std::to_string(best)) << ' ' << row[best];
        }
        std::cout << '\n';
    }
}

void run(Options const& options) {
    Logger logger;
    // The runtime outlives the engine, the engine its context: locals are destroyed in reverse.
    std::unique_ptr<nvinfer1::IRuntime> const runtime(nvinfer1::createInferRuntime(logger));
    require(runtime != nullptr, "TensorRT found no usable GPU or driver");
    // An engine that carries its plugin, or a lean runtime, brings code of its own. Refused unless it is asked for: open
    // only engines that you built.
    runtime->setEngineHostCodeAllowed(options.trusted);
    if (!options.plugins.empty()) {
        // Before the engine is read, which looks its plugins up by name.
        require(runtime->getPluginRegistry().loadLibrary(options.plugins.c_str()) != nullptr,
                options.plugins + " has no plugins for this TensorRT");
    }
    std::vector<char> const plan = readFile(options.engine);
    std::unique_ptr<nvinfer1::ICudaEngine> const engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    require(engine != nullptr, options.engine + " was built for another GPU or TensorRT, or needs --trusted or --plugins");
    std::unique_ptr<nvinfer1::IExecutionContext> const context(engine->createExecutionContext());
    require(context != nullptr, "no room on the GPU for this engine");

    std::string const input = tensorOf(*engine, nvinfer1::TensorIOMode::kINPUT);
    std::string const output = tensorOf(*engine, nvinfer1::TensorIOMode::kOUTPUT);
    nvinfer1::Dims shape = engine->getProfileShape(input.c_str(), 0, nvinfer1::OptProfileSelector::kOPT);
    shape.d[0] = options.batch;
    require(context->setInputShape(input.c_str(), shape),
            "batch " + std::to_string(options.batch) + " lies outside the engine's profile");

    std::vector<float> const images = readImages(options.images, static_cast<size_t>(volume(shape)));
    std::vector<float> outputs(static_cast<size_t>(volume(context->getTensorShape(output.c_str()))));
    DeviceBuffer const imagesThere(images.size() * sizeof(float));
    DeviceBuffer const outputsThere(outputs.size() * sizeof(float));
    require(context->setTensorAddress(input.c_str(), imagesThere.get()) &&
                context->setTensorAddress(output.c_str(), outputsThere.get()),
            "the engine does not take these buffers");

    Stream const stream;
    check(cudaMemcpyAsync(imagesThere.get(), images.data(), images.size() * sizeof(float), cudaMemcpyHostToDevice,
                          stream.get()),
          "copying the images");
    require(context->enqueueV3(stream.get()), "the engine did not run");
    check(cudaMemcpyAsync(outputs.data(), outputsThere.get(), outputs.size() * sizeof(float), cudaMemcpyDeviceToHost,
                          stream.get()),
          "copying the outputs");
    check(cudaStreamSynchronize(stream.get()), "running the engine");
    printBest(outputs, options.batch, options.labels.empty() ? std::vector<std::string>{} : readLines(options.labels));
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
