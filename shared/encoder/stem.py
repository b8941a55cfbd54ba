"""A ResNet (He et al. 2016) of any width with two outputs. Tensors have torchvision's names, so its weights load."""

from torch import Tensor, nn

from shared.encoder.vision import models


class Stem(nn.Module):
    """Map RGB to the feature maps after the second and the fourth stage."""

    def __init__(self, blocks: tuple[int, int, int, int], base: int, *, bottleneck: bool, last_stride: int) -> None:
        super().__init__()
        resnet = models().resnet
        self.block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(base, base, blocks[0], 1)
        self.layer2 = self._stage(base * self.block.expansion, 2 * base, blocks[1], 2)
        self.layer3 = self._stage(2 * base * self.block.expansion, 4 * base, blocks[2], 2)
        self.layer4 = self._stage(4 * base * self.block.expansion, 8 * base, blocks[3], last_stride)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, 3, side, side) to (n, shallow, side / 8, side / 8) and (n, 4 * shallow, 7, 7)."""
        shallow = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return shallow, self.layer4(self.layer3(shallow))

    def _stage(self, inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        outputs = planes * self.block.expansion
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        first = self.block(inputs, planes, stride, shortcut)
        return nn.Sequential(first, *(self.block(outputs, planes) for _ in range(blocks - 1)))
