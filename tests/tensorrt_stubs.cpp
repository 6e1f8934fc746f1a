// What a machine without the vendor's libraries lacks to load TensorRT's Python bindings: six functions of the builder, the
// parser and the plugin library, none of which is called; and dimension expressions, which only a builder makes. Built once
// for each of the three libraries, by -DNVINFER, -DNVONNXPARSER and -DNVINFER_PLUGIN.
#include <cstdint>

extern "C" {

#if defined(NVONNXPARSER)
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
#elif defined(NVINFER_PLUGIN)
bool initLibNvInferPlugins(void*, const char*) { return true; }
#elif defined(NVINFER)
void* getPluginRegistry();
void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* getBuilderPluginRegistry(int) { return getPluginRegistry(); }
#endif
}

#if defined(NVINFER)
namespace {

// IDimensionExpr and the implementation it points to, as the bindings call them: a constant, a variable or an operation.
struct Implementation {
    virtual ~Implementation() = default;
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const { return false; }
};

struct Expression {
    virtual ~Expression() = default;
    Implementation* implementation;
};

int64_t batch;  // the one size that is not known before a launch

struct Constant : Implementation {
    int64_t value;
    bool isConstant() const override { return true; }
    int64_t getConstantValue() const override { return value; }
};

struct Batch : Implementation {
    bool isConstant() const override { return false; }
    int64_t getConstantValue() const override { return batch; }
};

struct Operation : Implementation {
    int kind;
    const Implementation *left, *right;
    bool isConstant() const override { return left->isConstant() && right->isConstant(); }
    int64_t getConstantValue() const override {
        const int64_t a = left->getConstantValue(), b = right->getConstantValue();
        switch (kind) {  // nvinfer1::DimensionOperation
            case 0: return a + b;
            case 1: return a * b;
            case 2: return a > b ? a : b;
            case 3: return a < b ? a : b;
            case 4: return a - b;
            case 5: return a == b;
            case 6: return a < b;
            case 7: return a / b;
            default: return (a + b - 1) / b;
        }
    }
};

void* expression(Implementation* implementation) {
    Expression* made = new Expression;
    made->implementation = implementation;
    return made;
}

}  // namespace

extern "C" {
void set_batch(int64_t value) { batch = value; }
void* batch_expression() { return expression(new Batch); }

void* constant_expression(int64_t value) {
    Constant* made = new Constant;
    made->value = value;
    return expression(made);
}

void* operation_expression(int kind, void* left, void* right) {
    Operation* made = new Operation;
    made->kind = kind;
    made->left = static_cast<Expression*>(left)->implementation;
    made->right = static_cast<Expression*>(right)->implementation;
    return expression(made);
}
}
#endif
